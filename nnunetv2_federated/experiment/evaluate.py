"""Evaluate trained models at sites without training, on this machine or over a network."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.clientapp import ClientApp

from nnunetv2_federated.experiment.evaluate_choices import EvaluateChoices
from nnunetv2_federated.experiment.evaluation_files import check_new, write_evaluation
from nnunetv2_federated.experiment.evaluation_plan import (
    check_sites,
    chosen_metrics,
    open_sites,
    propose,
    read_models,
)
from nnunetv2_federated.experiment.naming_cases import naming_cases
from nnunetv2_federated.experiment.resolve import networked, server_settings, sites_with_keys
from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.errors import FederationError
from nnunetv2_federated.federation.evaluation import (
    EvaluationOffer,
    EvaluationProposal,
    MeasureTask,
    SiteEvaluation,
    WeightsReceipt,
    WeightsTask,
)
from nnunetv2_federated.federation.weights_store import WeightsStore
from nnunetv2_federated.flower.deployment.server.serve_evaluation import serve_evaluation
from nnunetv2_federated.flower.evaluation_app import add_evaluation
from nnunetv2_federated.flower.in_process import InProcessGrid
from nnunetv2_federated.flower.model_evaluation import (
    Evaluation,
    ask_for_offers,
    check_offers,
    evaluate_at_sites,
)
from nnunetv2_federated.nnunet.device import choose_device
from nnunetv2_federated.nnunet.evaluation.built_model import Machine, label_keys
from nnunetv2_federated.nnunet.evaluation.evaluated_site import EvaluatedSite
from nnunetv2_federated.nnunet.process import prepare_process


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation left."""

    folder: Path
    summary: dict[str, Any]
    """As nnU-Net's ``summary.json``, without a single case: ``foreground_mean`` and ``mean``."""
    report: Path
    """Report in one HTML file."""


def evaluate(choices: EvaluateChoices, say: Callable[[str], None]) -> EvaluationResult:
    """Evaluate one or two trained models at every site, and write what follows.

    Parameters
    ----------
    choices
        Models, sites, and what is told of them.
    say
        Receives what happens, one line each.

    Raises
    ------
    SettingsError
        If a model is none, names code, or something chosen is not possible; before any case is
        predicted, and with nothing written.
    SiteError
        If a site fails, or its dataset does not fit the model; names it.
    FederationError
        If an evaluation over a network was stopped.
    """
    prepare_process()
    check_new(choices.output)
    over_network = networked(choices)
    check_sites(choices, over_network=over_network)
    metrics = chosen_metrics(choices, over_network=over_network)
    machine = Machine(choose_device(choices.device), None, choices.allowed_modules)
    with tempfile.TemporaryDirectory() as scratch:
        store = WeightsStore(Path(scratch, "weights"))
        sites = open_sites(choices, machine, store)
        models = read_models(choices, store, machine, say)
        proposal = propose(choices, models, metrics)
        labels = () if models[0].classifies else tuple(label_keys(models[0]))
        evaluation = Evaluation(proposal, labels, store, choices.quantiles is not None)
        run = _over_network if over_network else _here
        offers, answers = run(choices, evaluation, sites, say)
        return _write(choices, evaluation, offers, answers)


def _write(
    choices: EvaluateChoices,
    evaluation: Evaluation,
    offers: Sequence[EvaluationOffer],
    answers: Sequence[SiteEvaluation],
) -> EvaluationResult:
    names = [path.name for path in (choices.model, choices.against) if path is not None]
    written = write_evaluation(choices.output, evaluation.proposal, names, offers, answers)
    return EvaluationResult(choices.output, written.summary, written.report)


_Answers = tuple[Sequence[EvaluationOffer], Sequence[SiteEvaluation]]


def _here(
    choices: EvaluateChoices,
    evaluation: Evaluation,
    sites: Sequence[EvaluatedSite],
    say: Callable[[str], None],
) -> _Answers:
    """Evaluate at sites of this machine, one after another."""
    del choices
    app = ClientApp()
    evaluating = [_LocalSite(site, evaluation.proposal) for site in sites]

    def find(context: Context) -> _LocalSite:
        return evaluating[int(context.node_config["partition-id"])]

    add_evaluation(app, find)
    grid = InProcessGrid(app, len(sites), {})
    names = {node: site.name for node, site in zip(grid.get_node_ids(), sites, strict=True)}
    with naming_cases(sites):
        offers = ask_for_offers(grid, names, evaluation.proposal)
        check_offers(offers, evaluation)
        answers = evaluate_at_sites(grid, offers, evaluation, say)
    return list(offers.values()), answers


@dataclass(frozen=True)
class _LocalSite:
    """A site of this machine, which agrees to everything that it can do."""

    site: EvaluatedSite
    proposal: EvaluationProposal

    def offer(self, proposal: EvaluationProposal) -> EvaluationOffer:
        return self.site.offer(proposal)

    def receive(self, task: WeightsTask, vector: Vector) -> WeightsReceipt:
        return self.site.receive(self.proposal, task, vector)

    def measure(self, task: MeasureTask) -> SiteEvaluation:
        del task
        return self.site.measure(self.proposal)


def _over_network(
    choices: EvaluateChoices,
    evaluation: Evaluation,
    sites: Sequence[EvaluatedSite],
    say: Callable[[str], None],
) -> _Answers:
    """Evaluate at sites on other machines."""
    del sites
    server, names = server_settings(choices), sites_with_keys(choices)
    say(f"evaluation {evaluation.proposal.approval()[:12]}: the sites approve it by this hash")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            return serve_evaluation(
                Path(scratch, "superlink"),
                server,
                names,
                evaluation,
                wait_for_sites=choices.wait_for_sites,
                answer_deadline=choices.answer_deadline,
                say=say,
            )
    except KeyboardInterrupt as stop:
        raise FederationError("stopped; the same command begins again") from stop
