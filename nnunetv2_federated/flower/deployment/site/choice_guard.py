"""What a site lets a choice of the best configuration measure: what was approved, each once."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from nnunetv2_federated.federation.best_configuration import Candidate, candidates
from nnunetv2_federated.federation.choosing import ChoiceOffer, ChoiceProposal, ScoreTask
from nnunetv2_federated.federation.errors import (
    CheckpointError,
    FederationError,
    SettingsError,
    SiteError,
)
from nnunetv2_federated.federation.files import read_state, write_state
from nnunetv2_federated.federation.messages import FullValidation
from nnunetv2_federated.federation.queue import trainings_of
from nnunetv2_federated.federation.run import Run, read_run
from nnunetv2_federated.flower.deployment.site.agreed_work import AgreedWork
from nnunetv2_federated.flower.deployment.site.consent import Consent
from nnunetv2_federated.flower.deployment.site.ledger import Ledger
from nnunetv2_federated.flower.deployment.site.local_site import LocalSite
from nnunetv2_federated.flower.deployment.site.work_guard import WorkMeter
from nnunetv2_federated.nnunet.data.dataset import Dataset, compared_labels, load_dataset
from nnunetv2_federated.nnunet.evaluation.site_predictions import (
    SitePredictions,
    in_workers,
    label_manager_of,
    labels_of,
    probabilities_of,
)

logger = logging.getLogger(__name__)

CHOICE_FILE, SCORES_FILE = "choice.json", "choice_answers.json"
_FORMAT = 1
_REMEDY = "restore it from a backup; it has what this site answered, which is answered only once"


class ChoiceGuard:
    """Compares what a choice asks of a site with what its engineer approved.

    Only candidates that nnU-Net's rules come to are measured, and no more of them than these rules
    need. The same candidate again gets the same answer.

    Parameters
    ----------
    here
        What the hospital offers.
    consent
        What its engineer has approved.
    ledger
        What the site has given, and where its trainings are.
    meter
        Counts the time of work.
    """

    def __init__(self, here: LocalSite, consent: Consent, ledger: Ledger, meter: WorkMeter) -> None:
        self._here = here
        self._work = AgreedWork(here, consent, ledger, meter, file=CHOICE_FILE, kind=ChoiceProposal)

    def offer(self, proposal: ChoiceProposal) -> ChoiceOffer:
        """Agree to a choice that was approved, if all predictions are there.

        Raises
        ------
        SiteError
            If it is not approved, predictions are missing, or the site has given all it gives.
        """
        if _key(proposal) not in self._read():
            self._work.check_left()
        self._work.consent.require(proposal)
        cases = len(next(iter(self._predictions(proposal).files.values())))
        self._work.agree(proposal)
        return ChoiceOffer(self._here.name, cases)

    def score(self, task: ScoreTask) -> FullValidation:
        """Measure a candidate, or give the answer that was given before.

        Raises
        ------
        SiteError
            If it is not approved any more, is none of nnU-Net's candidates, of too few cases, or
            nothing is left to give.
        """
        proposal = self._work.approved(task.approval)
        predictions = self._predictions(proposal)
        self._check(task.candidate, proposal, predictions)
        state, key = self._read(), _key(proposal)
        answers = state.get(key)
        question = hashlib.sha256(task.to_json().encode()).hexdigest()
        if answers is not None and question in answers:
            return FullValidation.from_json(answers[question])
        manager = label_manager_of(predictions.plans, predictions.dataset_json)
        if len(answers or ()) >= proposal.most_questions(len(compared_labels(manager))):
            raise SiteError(f"site {self._here.name}: has measured all candidates of this choice")
        if answers is None:
            self._work.count()
            self._write({**state, key: {}})  # a kill from here on does not count it twice
        done = self._work.meter.iteration_done
        with self._work.working(proposal), in_workers(done) as starmap:
            answer = predictions.score(task.candidate, starmap)
        self._write({**state, key: {**(answers or {}), question: answer.to_json()}})
        return answer

    def _check(
        self, candidate: Candidate, proposal: ChoiceProposal, predictions: SitePredictions
    ) -> None:
        """Refuse what nnU-Net's rules do not come to."""
        site = self._here.name
        if candidate.configurations not in candidates(
            list(proposal.queue), ensembles=proposal.ensembles
        ):
            raise SiteError(f"site {site}: refused a candidate that was not approved")
        cases = len(predictions.files[candidate.configurations[0]])
        if cases < proposal.min_cases:
            raise SiteError(
                f"site {site}: has {cases} validation cases, fewer than the {proposal.min_cases} "
                "approved"
            )
        manager = label_manager_of(predictions.plans, predictions.dataset_json)
        foreground = tuple(int(label) for label in manager.foreground_labels)
        allowed = [foreground, *(labels_of(label) for label in compared_labels(manager))]
        left = iter(allowed)
        if not all(labels in left for labels in candidate.removals):  # in this order
            raise SiteError(f"site {site}: refused a postprocessing that nnU-Net does not try")

    def _predictions(self, proposal: ChoiceProposal) -> SitePredictions:
        """Find the predictions of the trainings that the proposal names.

        Raises
        ------
        SiteError
            If one is missing; in the same words whatever it is, which only the site's log says.
        """
        site = self._here.name
        try:
            dataset = load_dataset(self._here.dataset, proposal.plans_name)
            if dataset.plans_hash != proposal.plans_hash:
                raise SettingsError(f"the plans here have SHA-256 {dataset.plans_hash}")
            return self._find(proposal, dataset)
        except FederationError as error:
            logger.error("no predictions to choose from: %s", error)  # noqa: TRY400  # it says all
            raise SiteError(
                f"site {site}: lacks predictions of the trainings named, or softmax outputs "
                "(train with --npz); the site's log says more"
            ) from error

    def _find(self, proposal: ChoiceProposal, dataset: Dataset) -> SitePredictions:
        ending = str(dataset.dataset_json["file_ending"])
        ids = [run_id for name in proposal.queue for run_id in proposal.run_ids[name]]
        files: dict[str, dict[str, Path]] = {}
        for (name, fold), run_id in zip(trainings_of(proposal.folds), ids, strict=True):
            folder = self._work.ledger.folder_of(run_id)
            run = read_run(folder)
            if (run.dataset, run.configuration, run.fold) != (dataset.name, name, fold):
                raise SettingsError(f"{folder} has another training than {name} fold {fold}")
            found = self._kept(run, folder, ending, npz=proposal.ensembles)
            if twice := files.setdefault(name, {}).keys() & found.keys():
                raise SettingsError(f"{name}: {min(twice)} is in two of the folds")
            files[name] |= found
        if len({frozenset(cases) for cases in files.values()}) > 1:
            raise SettingsError("the configurations have other validation cases")
        return SitePredictions(
            self._here.name,
            files,
            dataset.folder / "gt_segmentations",
            dataset.plans,
            dataset.dataset_json,
        )

    def _kept(self, run: Run, folder: Path, ending: str, *, npz: bool) -> dict[str, Path]:
        """Return the predictions that the full validation of a training has left, by case."""
        validation = folder / "sites" / self._here.name / "validation"
        found = {case: validation / (case + ending) for case in run.sites[0].validation_cases}
        needed = [*found.values(), *(probabilities_of(p, ending) for p in found.values() if npz)]
        if missing := [path for path in needed if not path.is_file()]:
            raise SettingsError(f"{missing[0]} is missing")
        return found

    def _read(self) -> dict[str, dict[str, str]]:
        path = self._here.folder / SCORES_FILE
        content = read_state(path, _FORMAT, _REMEDY)
        answers = {} if content is None else content.get("answers")
        if not isinstance(answers, dict) or not all(isinstance(a, dict) for a in answers.values()):
            raise CheckpointError(f"{path} is damaged: {_REMEDY}")
        return answers

    def _write(self, answers: dict[str, dict[str, str]]) -> None:
        write_state(self._here.folder / SCORES_FILE, {"answers": answers}, _FORMAT)


def _key(proposal: ChoiceProposal) -> str:
    """Return a name for a choice between these trainings."""
    content = [proposal.approval(), proposal.run_ids]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
