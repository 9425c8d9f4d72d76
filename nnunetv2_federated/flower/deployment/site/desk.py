"""What a site does for a coordinator: only what was approved, once, and within its limits."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, MessageType, RecordDict

from nnunetv2_federated.federation.errors import (
    CheckpointError,
    FederationError,
    SettingsError,
    SiteError,
)
from nnunetv2_federated.federation.files import read_state, write_atomically, write_state
from nnunetv2_federated.federation.fingerprint import samples_per_case
from nnunetv2_federated.federation.messages import (
    FingerprintTask,
    PlanProposal,
    PrepareTask,
    Proposal,
    TrainTask,
)
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.run import RUN_FILE, Run, SiteCases, read_run
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.federation.tasks import (
    check_evaluation,
    check_full_validation,
    check_round,
)
from nnunetv2_federated.flower.deployment.site.consent import (
    Agreement,
    Consent,
    Record,
    record_nothing,
)
from nnunetv2_federated.flower.deployment.site.ledger import (
    EVALUATION,
    ROUND,
    VALIDATION,
    Ledger,
    Question,
)
from nnunetv2_federated.flower.deployment.site.limits import Limits
from nnunetv2_federated.nnunet.data.dataset import Dataset, find_name, load_dataset
from nnunetv2_federated.nnunet.data.folds import fold_of_site
from nnunetv2_federated.nnunet.data.integrity import check_dataset
from nnunetv2_federated.nnunet.evaluation.tester import validates_segmentations
from nnunetv2_federated.nnunet.planning.allowed_code import check_trainer, resolve
from nnunetv2_federated.nnunet.planning.memory_estimate import check_training
from nnunetv2_federated.nnunet.planning.raw_site import DEFAULT_PROCESSES, RawSite
from nnunetv2_federated.nnunet.training.cascade import check_stages
from nnunetv2_federated.nnunet.training.local_state import rounds_on_disk
from nnunetv2_federated.nnunet.training.result_folder import (
    begin,
    drop_previous,
    federation_folder,
    one_run,
)
from nnunetv2_federated.nnunet.training.site import Site, SitePool

logger = logging.getLogger(__name__)

EVALUATE_FULLY = f"{MessageType.EVALUATE}.fully"
WORK = (MessageType.TRAIN, MessageType.EVALUATE, EVALUATE_FULLY)
"""Kinds of messages that cost computing time and tell something of the site's cases."""

_ASKED: dict[str, str] = {MessageType.EVALUATE: EVALUATION, EVALUATE_FULLY: VALIDATION}
_CURRENT, _PLANNING = "current.json", "planning.json"
_FORMAT = 2
_REMEDY = "delete it; the site then has to be asked to join again"
_LOOK_SECONDS = 1.0
"""How often work looks whether it may go on."""
_SAVE_SECONDS = 60.0
"""How often the time that work takes is written down, for a site that is killed."""
_TO_TRAIN = 0.8
"""Of the hours that are left: the rest is for validation."""


@dataclass
class Desk:
    """One site's decisions, kept in a private folder of its own.

    What a method raises may cross the wire: it names the site and a field, never a case or a path.

    Parameters
    ----------
    site
        Its name.
    dataset
        The site's, an id or a name.
    folder
        For what was proposed, approved and spent.
    device
        To train on.
    limits
        What the site gives at most.
    ask
        Shown what is not approved yet, says whether to take part; ``None`` if nobody is there.
    processes
        For fingerprints and preprocessing; nnU-Net's defaults if ``None``.
    allowed_modules
        Python modules of the hospital's own, whose trainers and networks plans may name.
    record
        Told of every decision, for the audit log: an event and its fields.
    """

    site: str
    dataset: str
    folder: Path
    device: str
    limits: Limits = field(default_factory=Limits)
    ask: Callable[[Agreement], bool] | None = None
    processes: int | None = None
    allowed_modules: tuple[str, ...] = ()
    record: Record = record_nothing

    def __post_init__(self) -> None:
        self.consent = Consent(self.site, self.folder, self.ask, self.record)
        self.ledger = Ledger(self.folder)
        self._meter = _Meter(self)
        self.pool = SitePool(self._meter)
        self._held: tuple[Path, contextlib.ExitStack] | None = None

    # Joining

    def join(self, proposal: Proposal) -> None:
        """Take part in a federation that was approved and fits; prepare its folder.

        Raises
        ------
        SiteError
            If it is not approved, wants more than the site gives, or its plans are not the site's.
        """
        settings = self._settings(proposal)
        dataset = self._load_dataset(proposal)
        self.limits.check_federation(
            settings,
            self.ledger.spent(dataset.name),
            self.ledger.rounds_done(proposal.run_id),
            self.site,
        )
        check_training(
            dataset,
            proposal.configuration,
            proposal.trainer,
            self.site,
            batch_size=settings.batch_size,
            device=self.device,
            limit_gb=self.limits.max_gpu_gb if self.device == "cuda" else None,
            allowed_modules=self.allowed_modules,
        )
        self.consent.require(proposal)
        self._look_through(dataset, proposal)
        run = self._run(proposal, settings, dataset)
        self._check_stages(run)
        folder = federation_folder(run)
        self._hold(folder)
        if _is_of(folder, proposal.run_id):
            write_atomically(folder / RUN_FILE, run.to_json())
        else:
            self.pool.close()
            begin(folder, run, saved=any(r >= 0 for r in self._rounds_kept(folder)))
        self.ledger.open_run(proposal.run_id, folder)
        self._write(
            _CURRENT,
            {"folder": str(folder), "dataset": dataset.name, "proposal": asdict(proposal)},
        )

    def find(self, context: Context) -> Site:
        """Return the living site of the federation joined last, if its approval still holds.

        Raises
        ------
        SiteError
            If the site has not joined, its approval was withdrawn, or it serves another dataset by
            now.
        """
        del context
        proposal, folder = self._current()
        self.consent.require_still(proposal)
        self._load_dataset(proposal)  # the plans may have been replaced since
        self._hold(folder)
        self._limit_gpu()
        try:
            return self.pool.get(read_run(folder), 0, folder)
        except SettingsError as error:  # about this machine: for its log, not for the server
            logger.exception("the site cannot be built")
            raise SiteError(f"site {self.site}: cannot train; the site's log says more") from error

    def rewind(self, run: str, server_round: int, how: str) -> None:
        """Let a server that was restored from a backup ask for a round again.

        Parameters
        ----------
        run
            Its identifier, or how it begins.
        server_round
            From 0.
        how
            Who decided, and how.

        Raises
        ------
        SettingsError
            If there is no such run, or the site does not keep its state of before that round.
        """
        folder = self.ledger.folder_of(run)
        kept = self._rounds_kept(folder)
        if not any(kept_round < server_round for kept_round in kept):
            first = min(kept) + 2 if kept else "none"
            raise SettingsError(
                f"--rewind {run} {server_round + 1}: the site does not keep its state of before "
                f"that round; the earliest it can repeat is {first}."
            )
        self.ledger.rewind(run, server_round)
        self.record("rewound", run=run, round=server_round + 1, how=how)

    # Work: a round, an evaluation, the full validation

    def admit(
        self, kind: str, task: TrainTask, weights: bytes
    ) -> tuple[Question, RecordDict | None]:
        """Allow a piece of work that follows from what was approved, once.

        Parameters
        ----------
        kind
            One of :data:`WORK`.
        task
            As it came.
        weights
            As they came.

        Returns
        -------
        tuple
            The question, and the answer if it was answered before.

        Raises
        ------
        SiteError
            If it is not what was approved, was answered to another question, or nothing is left to
            give.
        """
        proposal, _ = self._current()
        if task.run_id != proposal.run_id:
            raise SiteError(f"site {self.site}: refused a task of another run than it joined last")
        site = self.find(_NO_CONTEXT)
        settings, iterations = site.run.settings, site.trainer.num_val_iterations_per_epoch
        try:
            if kind == MessageType.TRAIN:
                check_round(task, settings, site.trainer.schedule.lrs, iterations)
            elif kind == MessageType.EVALUATE:
                check_evaluation(task, settings, iterations)
            else:
                check_full_validation(task, settings)
        except SiteError as error:
            raise SiteError(f"site {self.site}: {error}") from error
        same = asdict(replace(task, validate_received=0))
        digest = hashlib.sha256(json.dumps([kind, same], sort_keys=True).encode())
        digest.update(weights)
        name, step = _ASKED.get(kind, ROUND), task.server_round if kind == MessageType.TRAIN else 0
        question = Question(task.run_id, name, step, digest.hexdigest())
        return question, self.ledger.begin(question, site.run.dataset, self.limits, self.site)

    def finish(self, question: Question, answer: RecordDict) -> None:
        """Keep the answer to a piece of work; an earlier run's state is not needed any more."""
        self.ledger.finish(question, answer)
        if question.is_round:
            drop_previous(self._current()[1])

    def seconds_left(self, task: TrainTask) -> float | None:
        """How long to train in a round: its own limit, or less if the site's hours end before."""
        if self.limits.max_hours is None:
            return task.seconds
        spent = self.ledger.spent(self._current_dataset())
        left = max(1.0, (self.limits.max_hours - spent.hours) * 3600 * _TO_TRAIN)
        return left if task.seconds is None else min(left, task.seconds)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Add the time within to what the site has given; stop when nothing is left to give."""
        self._meter.start(self._current_dataset())
        try:
            yield
        finally:
            self._meter.stop()

    def check_going_on(self, hours: float) -> None:
        """Raise ``SiteError`` if work that is being done may not go on.

        Parameters
        ----------
        hours
            Of this work that are not written down yet.
        """
        proposal, _ = self._current()
        self.consent.require_still(proposal)
        spent = self.ledger.spent(self._current_dataset())
        self.limits.check_hours(replace(spent, hours=spent.hours + hours), self.site)

    # Planning

    def join_planning(self, proposal: PlanProposal) -> None:
        """Be planned for, if that was approved.

        Raises
        ------
        SiteError
            If it is not, or names a planner or preprocessor that is none.
        """
        try:
            for kind in ("planner", "preprocessor"):
                if kind in proposal.planner:
                    resolve(kind, proposal.planner[kind], self.allowed_modules)
        except SettingsError as error:
            raise SiteError(f"site {self.site}: refused a planning: {error}") from error
        self.consent.require(proposal)
        self._write(_PLANNING, {"proposal": asdict(proposal)})

    def find_raw(self, context: Context) -> RawSite:
        """Return the site's raw dataset, once planning was joined and as long as it is approved."""
        del context
        self._planning()
        try:
            return RawSite.open(
                self.dataset,
                site=self.site,
                fingerprint_processes=self.processes or RawSite.fingerprint_processes,
                preprocessing_processes=dict.fromkeys(DEFAULT_PROCESSES, self.processes)
                if self.processes
                else None,
                allowed_modules=self.allowed_modules,
            )
        except SettingsError as error:
            logger.exception("no raw dataset")
            raise SiteError(
                f"site {self.site}: no raw dataset; the site's log says more"
            ) from error

    def check_fingerprint(self, task: FingerprintTask, cases: int) -> None:
        """Raise ``SiteError`` if another fingerprint than the approved one is asked for.

        Parameters
        ----------
        task
            As it came.
        cases
            Training cases of this site: a federation has at least as many, and samples no more
            voxels of each than of those.
        """
        approved = self._planning()
        if task.min_cases != approved.min_cases:
            raise SiteError(f"site {self.site}: refused a fingerprint of other bins than approved")
        if task.verify_dataset_integrity != approved.verify_dataset_integrity:
            raise SiteError(
                f"site {self.site}: refused verify_dataset_integrity "
                f"{task.verify_dataset_integrity}, which was not approved"
            )
        if task.samples_per_case > samples_per_case(cases):
            raise SiteError(
                f"site {self.site}: refused {task.samples_per_case} samples per case; nnU-Net "
                f"takes at most {samples_per_case(cases)}"
            )

    def check_prepare(self, task: PrepareTask) -> None:
        """Raise ``SiteError`` if more would be changed at the site than was approved."""
        approved = self._planning()
        for configuration in task.configurations:
            if configuration not in approved.configurations:
                raise SiteError(
                    f"site {self.site}: refused to preprocess {configuration[:40]}, which was not "
                    "approved"
                )
        if task.replace_plans != approved.replace_plans:
            raise SiteError(f"site {self.site}: refused to replace plans, which was not approved")

    # Private

    def _rounds_kept(self, folder: Path) -> list[int]:
        return rounds_on_disk(folder / "sites" / self.site)

    def _hold(self, folder: Path) -> None:
        """Keep other commands out of the result folder, until another federation is joined."""
        if self._held is not None and self._held[0] == folder:
            return
        self.release()
        held = contextlib.ExitStack()
        try:
            held.enter_context(one_run(folder.parent))
        except SettingsError as error:
            logger.exception("the result folder is not free")
            raise SiteError(
                f"site {self.site}: another command is at work in its result folder, or it cannot "
                "be written; the site's log says more"
            ) from error
        self._held = (folder, held)

    def release(self) -> None:
        """Let other commands into the result folder again."""
        if self._held is not None:
            self._held[1].close()
            self._held = None

    def _planning(self) -> PlanProposal:
        content = self._read(_PLANNING)
        if content is None:
            raise SiteError(f"site {self.site} has not agreed to be planned for")
        proposal: PlanProposal = _restored(PlanProposal, content, self.folder / _PLANNING)
        self.consent.require_still(proposal)
        return proposal

    def _current(self) -> tuple[Proposal, Path]:
        """Return the federation joined last and its folder."""
        current = self._read(_CURRENT)
        if current is None:
            raise SiteError(f"site {self.site} has not joined a federation")
        if current.get("dataset") != self._current_dataset():
            raise SiteError(
                f"site {self.site} serves another dataset than the one it joined with; it has to "
                "be asked to join again"
            )
        proposal = _restored(Proposal, current, self.folder / _CURRENT)
        return proposal, Path(str(current["folder"]))

    def _current_dataset(self) -> str:
        try:
            return str(find_name(self.dataset))
        except SettingsError as error:  # names this machine's folders
            logger.error("the dataset is not found: %s", error)  # noqa: TRY400  # it is the text
            raise SiteError(
                f"site {self.site}: its dataset is not found any more; the site's log says more"
            ) from error

    def _settings(self, proposal: Proposal) -> FederationSettings:
        try:
            settings = FederationSettings(**proposal.settings)
        except (SettingsError, TypeError) as error:
            raise SiteError(f"site {self.site}: {error}") from error
        return settings

    def _load_dataset(self, proposal: Proposal) -> Dataset:
        """Load the dataset if it has the federation's plans; refuse all else in the same words."""
        refusal = SiteError(
            f"site {self.site}: no dataset preprocessed for {proposal.configuration}, fold "
            f"{proposal.fold}, with plans {proposal.plans_name} of SHA-256 "
            f"{proposal.plans_hash[:12]}; plan together, or copy the federation's plans and "
            "preprocess again; the site's log says more"
        )
        try:
            dataset = load_dataset(self.dataset, proposal.plans_name)
            fold_of_site(dataset, proposal.configuration, proposal.fold)
        except SettingsError as error:
            logger.error("the dataset does not fit: %s", error)  # noqa: TRY400  # it says all
            raise refusal from error
        except Exception as error:  # a file of that name may hold anything
            logger.exception("the dataset does not fit")
            raise refusal from error
        if dataset.plans_hash != proposal.plans_hash:
            logger.error(
                "the plans %s here have SHA-256 %s", proposal.plans_name, dataset.plans_hash
            )
            raise refusal
        return dataset

    def _look_through(self, dataset: Dataset, proposal: Proposal) -> None:
        """Find out now what would end the training later, or spoil it."""
        trainer = check_trainer(proposal.trainer, self.allowed_modules)
        try:
            for line in check_dataset(
                dataset,
                proposal.configuration,
                [proposal.fold],
                segmentation=validates_segmentations(trainer),
            ):
                logger.warning(line)
        except SettingsError as error:  # names cases: for this site's log only
            logger.exception("the dataset does not agree with itself")
            raise SiteError(
                f"site {self.site}: its dataset does not agree with itself; there, "
                "nnUNetv2_federated_check and the site's log say what"
            ) from error

    def _check_stages(self, run: Run) -> None:
        try:
            check_stages(run)
        except SettingsError as error:  # names cases and folders
            logger.error("a stage of the cascade is missing: %s", error)  # noqa: TRY400
            raise SiteError(
                f"site {self.site}: {run.configuration} lacks files of the other stage of its "
                "cascade: preprocess both, and train the first on fold all, or on every fold, with "
                "the same trainer and plans; the site's log says more"
            ) from error

    def _run(self, proposal: Proposal, settings: FederationSettings, dataset: Dataset) -> Run:
        training, validation = fold_of_site(dataset, proposal.configuration, proposal.fold)
        # limits that belong to all sites together mean nothing in a run with one
        own = asdict(settings) | {
            "sites_per_round": None,
            "min_replies": None,
            "seed": settings.seed + proposal.site_index,
        }
        return Run(
            dataset=dataset.name,
            configuration=proposal.configuration,
            fold=proposal.fold,
            trainer=proposal.trainer,
            plans_name=proposal.plans_name,
            device=self.device,
            settings=FederationSettings(**own),
            sites=(SiteCases(self.site, dataset.name, tuple(training), tuple(validation)),),
            run_id=proposal.run_id,
        )

    def _limit_gpu(self) -> None:
        most = self.limits.max_gpu_gb
        if most is None or self.device != "cuda":
            return
        total = torch.cuda.get_device_properties(0).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(min(1.0, most / total))

    def _read(self, name: str) -> dict[str, Any] | None:
        return read_state(self.folder / name, _FORMAT, _REMEDY)

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        write_state(self.folder / name, content, _FORMAT)


class _Meter(Observer):
    """Counts the time of work, and looks between iterations whether it may go on."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._dataset = ""
        self._running = False
        self._counted = 0.0
        """Until when the time is written down."""
        self._looked = 0.0

    def start(self, dataset: str) -> None:
        """Begin to count, for this dataset."""
        self._dataset = dataset
        self._counted = self._looked = time.monotonic()
        self._running = True

    def stop(self) -> None:
        """Write down what was not counted yet."""
        self._running = False
        self._count()

    def iteration_done(self) -> None:
        """Look whether work may go on.

        Raises
        ------
        SiteError
            If the approval was withdrawn or the hours are spent.
        """
        now = time.monotonic()
        if not self._running or now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        if now - self._counted > _SAVE_SECONDS:
            self._count()
        self._desk.check_going_on((time.monotonic() - self._counted) / 3600)

    def _count(self) -> None:
        now = time.monotonic()
        self._desk.ledger.spend_hours(self._dataset, (now - self._counted) / 3600)
        self._counted = now


_NO_CONTEXT = Context(0, 0, {}, RecordDict(), {})


def _restored(kind: Callable[..., Any], content: Mapping[str, Any], path: Path) -> Any:  # noqa: ANN401
    """Build what was written by this site, checked as if it came from elsewhere."""
    try:
        return kind(**content["proposal"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {_REMEDY}") from error


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
