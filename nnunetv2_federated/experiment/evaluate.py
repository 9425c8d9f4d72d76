"""Evaluate trained models at sites without training, on this machine or over a network."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.clientapp import ClientApp

from nnunetv2_federated.experiment.evaluate_choices import QUANTILES, EvaluateChoices
from nnunetv2_federated.experiment.evaluation_files import check_new, write_evaluation
from nnunetv2_federated.experiment.resolve import networked, server_settings, sites_with_keys
from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.errors import FederationError, SettingsError, SiteError
from nnunetv2_federated.federation.evaluated_model import ModelDescription
from nnunetv2_federated.federation.evaluation import (
    SURFACE,
    EvaluationOffer,
    EvaluationProposal,
    MeasureTask,
    Metric,
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
from nnunetv2_federated.nnunet.evaluation.model_files import WhichModel
from nnunetv2_federated.nnunet.evaluation.read_model import read_model
from nnunetv2_federated.nnunet.process import prepare_process
from nnunetv2_federated.nnunet.training.packages import defining_packages

_MOST_NOTES = 5


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
    _check_sites(choices, over_network=over_network)
    metrics = _metrics(choices)
    machine = Machine(choose_device(choices.device), None, choices.allowed_modules)
    with tempfile.TemporaryDirectory() as scratch:
        store = WeightsStore(Path(scratch, "weights"))
        sites = [EvaluatedSite.open(name, machine, store) for name in choices.site_datasets or ()]
        models = _models(choices, store, machine, say)
        proposal = _proposal(choices, models, metrics)
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


def _check_sites(choices: EvaluateChoices, *, over_network: bool) -> None:
    chosen = choices.site_datasets or ()
    if over_network and chosen:
        raise SettingsError(
            "--site-datasets with --server: sites on other machines name their own."
        )
    if not over_network and not chosen:
        raise SettingsError(
            "no sites: give --site-datasets DATASET..., one for each site, or --server HOST[:PORT] "
            "for sites on other machines."
        )
    if len(set(chosen)) < len(chosen):
        raise SettingsError(f"--site-datasets {' '.join(chosen)}: a dataset is named twice.")


def _metrics(choices: EvaluateChoices) -> tuple[Metric, ...]:
    monai = find_spec("monai") is not None
    if choices.metrics is None:
        return ("Dice", *SURFACE) if monai else ("Dice",)
    lacking = [name for name in choices.metrics if name in SURFACE]
    if lacking and not monai:
        raise SettingsError(
            f"--metrics {' '.join(choices.metrics)}: {lacking[0]} needs MONAI: pip install "
            '"nnunetv2-federated[surface]", or leave it out.'
        )
    return tuple(dict.fromkeys(choices.metrics))


def _models(
    choices: EvaluateChoices, store: WeightsStore, machine: Machine, say: Callable[[str], None]
) -> list[ModelDescription]:
    which = WhichModel(choices.folds, choices.checkpoint, choices.configuration)
    models = []
    for path in (choices.model, choices.against):
        if path is None:
            continue
        model = read_model(path, which, store, machine, postprocess=choices.postprocessing)
        models.append(model)
        folds = ", ".join(map(str, model.folds))
        say(
            f"{path.name}: {model.trainer}, {model.configuration}, folds {folds}, "
            f"{model.values} weights each, SHA-256 {model.sha256[:12]}"
        )
    return models


def _proposal(
    choices: EvaluateChoices, models: list[ModelDescription], metrics: Sequence[Metric]
) -> EvaluationProposal:
    """Return what the sites are asked.

    Raises
    ------
    SettingsError
        If the two models do not fit each other, or metrics are chosen for a classifier.
    """
    first = models[0]
    if first.classifies:
        _check_classifier(choices)
    if not _comparable(first, models[-1]):
        raise SettingsError(
            f"--against {choices.against}: is of other labels than {choices.model}; paired "
            "differences need the same."
        )
    packages: dict[str, str] = {}
    for model in models:
        packages |= defining_packages(model.plans, model.trainer)
    return EvaluationProposal(
        models=models,
        subset="Ts" if choices.test_set else "Tr",
        metrics=[] if first.classifies else list(metrics),
        min_cases=choices.min_cases,
        quantiles=[] if first.classifies else sorted(set(choices.quantiles or QUANTILES)),
        packages=packages,
    )


def _check_classifier(choices: EvaluateChoices) -> None:
    if choices.metrics is not None:
        raise SettingsError(
            f"--metrics {' '.join(choices.metrics)}: all metrics of a classifier are told; leave "
            "the flag out."
        )
    if choices.quantiles is not None:
        raise SettingsError("--quantiles: a classifier has no metric of a single case.")


def _comparable(first: ModelDescription, other: ModelDescription) -> bool:
    if first.classifies or other.classifies:
        return first.dataset_json.get("classes") == other.dataset_json.get("classes")
    return label_keys(first) == label_keys(other)


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
    with _naming_cases(sites):
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


@contextlib.contextmanager
def _naming_cases(sites: Sequence[EvaluatedSite]) -> Iterator[None]:
    """Add names of cases and files, all of them this user's own, to an error, as bad input."""
    log = logging.getLogger("nnunetv2_federated")
    unheard = logging.NullHandler()  # the error has what a site would log
    log.addHandler(unheard)
    try:
        yield
    except SiteError as error:
        notes = [note for site in sites for note in site.notes][:_MOST_NOTES]
        details = f". Here: {'; '.join(notes).rstrip('.')}." if notes else ""
        raise SettingsError(f"{error}{details}") from error
    finally:
        log.removeHandler(unheard)


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
