"""What a site lets an evaluation of trained models do: what was approved, once."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.errors import CheckpointError, SettingsError, SiteError
from nnunetv2_federated.federation.evaluation import (
    EvaluationOffer,
    EvaluationProposal,
    MeasureTask,
    SiteEvaluation,
    WeightsReceipt,
    WeightsTask,
)
from nnunetv2_federated.federation.files import read_state, write_state
from nnunetv2_federated.federation.weights_store import WeightsStore
from nnunetv2_federated.flower.deployment.site.consent import Consent
from nnunetv2_federated.flower.deployment.site.gpu_limit import limit_gpu
from nnunetv2_federated.flower.deployment.site.ledger import Ledger
from nnunetv2_federated.flower.deployment.site.local_site import LocalSite
from nnunetv2_federated.flower.deployment.site.proposal_file import ProposalFile
from nnunetv2_federated.flower.deployment.site.work_guard import WorkMeter
from nnunetv2_federated.nnunet.evaluation.built_model import Machine
from nnunetv2_federated.nnunet.evaluation.evaluated_site import EvaluatedSite

logger = logging.getLogger(__name__)

EVALUATION_FILE, ANSWERS_FILE = "evaluation.json", "evaluation_answers.json"
_FORMAT = 1
_REMEDY = "restore it from a backup; it has what this site answered, which is answered only once"


class EvaluationGuard:
    """Compares what an evaluation asks of a site with what its engineer approved.

    An approved evaluation is done once, and counts as one of the site's evaluations. The same
    question again gets the same answer, whatever the dataset has become since: the difference of
    two answers would be the patients that came in between.

    Parameters
    ----------
    here
        What the hospital offers.
    consent
        What its engineer has approved.
    ledger
        What the site has given.
    meter
        Counts the time of work.
    """

    def __init__(self, here: LocalSite, consent: Consent, ledger: Ledger, meter: WorkMeter) -> None:
        self._here = here
        self._consent = consent
        self._ledger = ledger
        self._meter = meter
        self._store = WeightsStore(here.folder / "evaluated")
        self._joined = ProposalFile(here.folder / EVALUATION_FILE, EvaluationProposal)

    def offer(self, proposal: EvaluationProposal) -> EvaluationOffer:
        """Agree to an evaluation that was approved.

        Raises
        ------
        SiteError
            If it is not, names code that is not allowed, or the site has given all it gives.
        """
        site, dataset = self._site(), self._here.dataset_name()
        site.check_models(proposal)
        if proposal.approval() not in self._read()["begun"]:
            limits = self._here.limits
            limits.check_step(self._ledger.spent(dataset), self._here.name, is_round=False)
        self._consent.require(proposal)
        offer = site.offer(proposal)
        before = self._joined.read()
        if before is None or before[0].approval() != proposal.approval():
            self._store.clear()
        self._joined.write(proposal, dataset=dataset)
        return offer

    def receive(self, task: WeightsTask, vector: Vector) -> WeightsReceipt:
        """Keep weights that belong to the approved model.

        Raises
        ------
        SiteError
            If they do not, or the evaluation is not approved any more.
        """
        return self._site().receive(self._approved(task.approval), task, vector)

    def measure(self, task: MeasureTask) -> SiteEvaluation:
        """Evaluate, or give the answer that was given before.

        Raises
        ------
        SiteError
            If it is not approved any more, weights are missing, or nothing is left to give.
        """
        proposal = self._approved(task.approval)
        state = self._read()
        if task.approval in state["answers"]:
            return SiteEvaluation.from_json(state["answers"][task.approval])
        dataset, limits = self._here.dataset_name(), self._here.limits
        site = self._site()
        site.check_weights(proposal)
        if task.approval not in state["begun"]:
            self._ledger.count_evaluation(dataset, limits, self._here.name)
            state["begun"] = [*state["begun"], task.approval]
            self._write(state)
        limits.check_hours(self._ledger.spent(dataset), self._here.name)
        limit_gpu(self._here)
        with self._meter.measuring(dataset, lambda hours: self._check_going_on(proposal, hours)):
            answer = site.measure(proposal)
        state["answers"] = {**state["answers"], task.approval: answer.to_json()}
        self._write(state)
        self._store.clear()
        return answer

    def _check_going_on(self, proposal: EvaluationProposal, hours: float) -> None:
        self._consent.require_still(proposal)
        spent = self._ledger.spent(self._here.dataset_name())
        self._here.limits.check_hours(replace(spent, hours=spent.hours + hours), self._here.name)

    def _approved(self, approval: str) -> EvaluationProposal:
        joined, site = self._joined.read(), self._here.name
        if joined is None or joined[0].approval() != approval:
            raise SiteError(f"site {site} has not agreed to the evaluation {approval[:12]}")
        proposal, notes = joined
        if notes.get("dataset") != self._here.dataset_name():
            raise SiteError(
                f"site {site} serves another dataset than the one it agreed with; it has to be "
                "asked again"
            )
        self._consent.require_still(proposal)
        return proposal

    def _site(self) -> EvaluatedSite:
        here = self._here
        machine = Machine(here.device, here.limits.max_gpu_gb, here.allowed_modules)
        try:
            site = EvaluatedSite.open(here.dataset, machine, self._store, here.name)
        except SettingsError as error:
            logger.exception("no raw dataset")
            raise SiteError(
                f"site {here.name}: no raw dataset; the site's log says more"
            ) from error
        return replace(site, case_done=self._meter.iteration_done)

    def _read(self) -> dict[str, Any]:
        path = self._here.folder / ANSWERS_FILE
        content = read_state(path, _FORMAT, _REMEDY)
        if content is None:
            return {"begun": [], "answers": {}}
        begun, answers = content.get("begun"), content.get("answers")
        if not isinstance(begun, list) or not isinstance(answers, dict):
            raise CheckpointError(f"{path} is damaged: {_REMEDY}")
        return content

    def _write(self, state: dict[str, Any]) -> None:
        write_state(self._here.folder / ANSWERS_FILE, state, _FORMAT)
