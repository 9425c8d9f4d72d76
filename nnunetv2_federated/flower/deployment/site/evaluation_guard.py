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
from nnunetv2_federated.flower.deployment.site.agreed_work import AgreedWork
from nnunetv2_federated.flower.deployment.site.consent import Consent
from nnunetv2_federated.flower.deployment.site.gpu_limit import limit_gpu
from nnunetv2_federated.flower.deployment.site.ledger import Ledger
from nnunetv2_federated.flower.deployment.site.local_site import LocalSite
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
        self._store = WeightsStore(here.folder / "evaluated")
        self._work = AgreedWork(
            here, consent, ledger, meter, file=EVALUATION_FILE, kind=EvaluationProposal
        )

    def offer(self, proposal: EvaluationProposal) -> EvaluationOffer:
        """Agree to an evaluation that was approved.

        Raises
        ------
        SiteError
            If it is not, names code that is not allowed, or the site has given all it gives.
        """
        site = self._site()
        site.check_models(proposal)
        if proposal.approval() not in self._read()["begun"]:
            self._work.check_left()
        self._work.consent.require(proposal)
        offer = site.offer(proposal)
        before = self._work.last()
        if before is None or before.approval() != proposal.approval():
            self._store.clear()
        self._work.agree(proposal)
        return offer

    def receive(self, task: WeightsTask, vector: Vector) -> WeightsReceipt:
        """Keep weights that belong to the approved model.

        Raises
        ------
        SiteError
            If they do not, or the evaluation is not approved any more.
        """
        return self._site().receive(self._work.approved(task.approval), task, vector)

    def measure(self, task: MeasureTask) -> SiteEvaluation:
        """Evaluate, or give the answer that was given before.

        Raises
        ------
        SiteError
            If it is not approved any more, weights are missing, or nothing is left to give.
        """
        proposal = self._work.approved(task.approval)
        state = self._read()
        if task.approval in state["answers"]:
            return SiteEvaluation.from_json(state["answers"][task.approval])
        site = self._site()
        site.check_weights(proposal)
        if task.approval not in state["begun"]:
            self._work.count()
            state["begun"] = [*state["begun"], task.approval]
            self._write(state)
        limit_gpu(self._here)
        with self._work.working(proposal):
            answer = site.measure(proposal)
        state["answers"] = {**state["answers"], task.approval: answer.to_json()}
        self._write(state)
        self._store.clear()
        return answer

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
        return replace(site, case_done=self._work.meter.iteration_done)

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
