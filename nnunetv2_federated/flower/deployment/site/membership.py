"""The federation that a site takes part in: joining it, and the site's trainer in it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path

from nnunetv2_federated.federation.errors import (
    CheckpointError,
    FederationError,
    SettingsError,
    SiteError,
)
from nnunetv2_federated.federation.files import write_atomically
from nnunetv2_federated.federation.proposals import Proposal
from nnunetv2_federated.federation.run import RUN_FILE, read_run
from nnunetv2_federated.federation.study import StudyEnd, StudyReceipt
from nnunetv2_federated.flower.deployment.site.consent import Consent
from nnunetv2_federated.flower.deployment.site.gpu_limit import limit_gpu
from nnunetv2_federated.flower.deployment.site.ledger import Ledger
from nnunetv2_federated.flower.deployment.site.local_run import LocalRun, find_dataset
from nnunetv2_federated.flower.deployment.site.local_site import LocalSite
from nnunetv2_federated.flower.deployment.site.proposal_file import ProposalFile
from nnunetv2_federated.nnunet.evaluation.tester import validates_segmentations
from nnunetv2_federated.nnunet.training.ranks import check_divisible
from nnunetv2_federated.nnunet.training.result_folder import (
    begin,
    drop_trials,
    federation_folder,
    one_run,
)
from nnunetv2_federated.nnunet.training.site_pool import SitePool, WorkingSite
from nnunetv2_federated.nnunet.training.site_state import rounds_on_disk
from nnunetv2_federated.nnunet.training.trainer import federated_trainer

logger = logging.getLogger(__name__)

CURRENT_FILE = "current.json"


class Membership:
    """The federation that was joined last.

    What a method raises may cross the wire: it names the site and a field, never a case or a path.

    Parameters
    ----------
    here
        What the hospital offers.
    consent
        What its engineer has approved.
    ledger
        What the site has given, and how far it is in each run.
    pool
        Keeps the trainer between rounds.
    """

    def __init__(self, here: LocalSite, consent: Consent, ledger: Ledger, pool: SitePool) -> None:
        self._here = here
        self._consent = consent
        self._ledger = ledger
        self._pool = pool
        self._current = ProposalFile(here.folder / CURRENT_FILE, Proposal)
        self._held: tuple[Path, contextlib.ExitStack] | None = None
        """Result folder that other commands are kept out of."""

    def join(self, proposal: Proposal) -> None:
        """Take part in a federation that was approved and fits; prepare its folder.

        Raises
        ------
        SiteError
            If it is not approved, wants more than the site gives, or its plans are not the site's.
        """
        local = LocalRun.of(proposal, self._here)
        spent = self._ledger.spent(local.dataset.name)
        given = self._ledger.rounds_of(proposal)
        local.check_limits(spent, given)
        self._consent.require(proposal)
        self._ledger.check_same(proposal.run_id, _fixed(proposal))
        # all of a queue before its first round, then what comes next
        local.check_content(proposal.current if given else proposal.folds)
        run = local.run()
        folder = federation_folder(run)
        self._hold(folder)
        if _is_of(folder, proposal.run_id):
            write_atomically(folder / RUN_FILE, run.to_json())
        else:
            self._pool.close()  # also of an earlier run in this folder
            begin(folder, run, saved=any(r >= 0 for r in self._rounds_kept(folder)))
        self._ledger.open_run(proposal.run_id, folder, _fixed(proposal))
        self._current.write(proposal, folder=str(folder), dataset=local.dataset.name)

    def end_trials(self, end: StudyEnd) -> StudyReceipt:
        """Delete what is needed to continue trials of a study that this site takes part in.

        Raises
        ------
        SiteError
            If it takes part in no such study, or not any more.
        """
        proposal, _ = self.current()
        if proposal.study is None or proposal.study.study_id != end.study_id:
            raise SiteError(f"site {self._here.name} has joined another study, or none, last")
        self._consent.require_still(proposal)
        if end.finished or proposal.trial in end.trials:
            self._pool.close()
        drop_trials(proposal.study, end.trials)
        return StudyReceipt(self._here.name)

    def current(self) -> tuple[Proposal, Path]:
        """Return the proposal and the folder of the federation that was joined last.

        Raises
        ------
        SiteError
            If none was joined, or with another dataset than the site serves now.
        """
        current = self._current.read()
        if current is None:
            raise SiteError(f"site {self._here.name} has not joined a federation")
        proposal, notes = current
        if notes.get("dataset") != self._here.dataset_name():
            raise SiteError(
                f"site {self._here.name} serves another dataset than the one it joined with; it "
                "has to be asked to join again"
            )
        return proposal, Path(str(notes["folder"]))

    def site(self) -> WorkingSite:
        """Return the site's trainer in the federation joined last, if its approval still holds.

        Raises
        ------
        SiteError
            If the site has not joined, its approval was withdrawn, or it serves another dataset by
            now.
        """
        proposal, folder = self.current()
        self._consent.require_still(proposal)
        # the plans may have been replaced since
        find_dataset(proposal, self._here, proposal.current)
        self._hold(folder)
        limit_gpu(self._here)
        try:
            run = replace(  # the site may have been started anew, with other GPUs
                read_run(folder), device=self._here.device, num_gpus=self._here.num_gpus
            )
            if run.num_gpus > 1:
                segmentation = validates_segmentations(federated_trainer(run.trainer))
                private = run.settings.private
                check_divisible(run.num_gpus, private=private, segmentation=segmentation)
            return self._pool.get(run, 0, folder)
        except SettingsError as error:  # about this machine: for its log, not for the server
            logger.exception("the site cannot be built")
            raise SiteError(
                f"site {self._here.name}: cannot train; the site's log says more"
            ) from error

    def check_rewind(self, run: str, server_round: int) -> None:
        """Check that the site can repeat a round.

        Parameters
        ----------
        run
            Identifier of the run, or how it begins.
        server_round
            Number of the round, from 0.

        Raises
        ------
        SettingsError
            If there is no such run, or the site does not keep its state of before that round.
        """
        kept = self._rounds_kept(self._ledger.folder_of(run))
        if not any(kept_round < server_round for kept_round in kept):
            first = min(kept) + 2 if kept else "none"
            raise SettingsError(
                f"--rewind {run} {server_round + 1}: the site does not keep its state of before "
                f"that round; the earliest it can repeat is {first}."
            )

    def release(self) -> None:
        """Let other commands into the result folder again."""
        if self._held is not None:
            self._held[1].close()
            self._held = None

    def _hold(self, folder: Path) -> None:
        """Keep other commands out of the result folder, until another federation is joined."""
        if self._held is not None and self._held[0] == folder:
            return
        self._pool.close()  # the trainer of another run would only take memory
        self.release()
        held = contextlib.ExitStack()
        try:
            held.enter_context(one_run(folder.parent))
        except SettingsError as error:
            logger.exception("the result folder is not free")
            raise SiteError(
                f"site {self._here.name}: another command is at work in its result folder, or it "
                "cannot be written; the site's log says more"
            ) from error
        self._held = (folder, held)

    def _rounds_kept(self, folder: Path) -> list[int]:
        return rounds_on_disk(folder / "sites" / self._here.name)


def _is_of(folder: Path, run_id: str) -> bool:
    """Whether a folder is of this run; one that cannot be read is not taken for another run's."""
    if not (folder / RUN_FILE).is_file():
        return False
    try:
        return read_run(folder).run_id == run_id
    except FederationError as error:
        raise CheckpointError(
            f"{error}; if the run in {folder} is not to be continued, delete that folder"
        ) from error


def _fixed(proposal: Proposal) -> str:
    """Return a hash of what a trial of a study has from its first round to its last."""
    if proposal.study is None:
        return ""
    fixed = [proposal.settings, proposal.site_index, proposal.configuration, proposal.fold]
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()
