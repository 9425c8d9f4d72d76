"""The server's side of evaluating trained models at sites: offers, weights, answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flwr.serverapp import Grid

from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.evaluation import (
    EvaluationOffer,
    EvaluationProposal,
    MeasureTask,
    SiteEvaluation,
    WeightsReceipt,
    WeightsTask,
)
from nnunetv2_federated.federation.moments import enough_for_quantiles
from nnunetv2_federated.federation.pooled_evaluation import check_answer
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.federation.weights_store import WeightsStore
from nnunetv2_federated.flower.asking import ask_sites
from nnunetv2_federated.flower.evaluation_app import MEASURE, OFFER, WEIGHTS
from nnunetv2_federated.flower.records import pack_content, pack_weights, reading

Say = Callable[[str], None]
Offers = Mapping[int, EvaluationOffer]
"""What the sites offer, by node."""
_LONGEST = FederationSettings.answer_deadline


@dataclass(frozen=True)
class Evaluation:
    """What is asked of all sites, and what the answers are checked with."""

    proposal: EvaluationProposal
    labels: tuple[str, ...]
    """Labels and regions that segmentations are compared on."""
    store: WeightsStore
    """Has the vectors of all folds."""
    needs_quantiles: bool = False
    """Whether the quantiles are needed, not only welcome."""


def ask_for_offers(
    grid: Grid,
    names: Mapping[int, str],
    proposal: EvaluationProposal,
    answer_deadline: float = _LONGEST,
) -> Offers:
    """Ask each site, known by its node, whether it can evaluate the models, and on how many cases.

    Raises
    ------
    SiteError
        If a site cannot, or does not answer within ``answer_deadline`` seconds; names it.
    """
    content = pack_content(proposal.to_json())
    return ask_sites(
        grid, names, OFFER, EvaluationOffer.from_json, answer_deadline, content=content
    )


def check_offers(offers: Offers, evaluation: Evaluation) -> None:
    """Refuse an evaluation of which less could be told than was asked for.

    Parameters
    ----------
    offers
        Offers of all sites.
    evaluation
        What they were asked.

    Raises
    ------
    SettingsError
        If a site has too few patients; names it.
    """
    least, asked = evaluation.proposal.min_cases, evaluation.proposal.quantiles
    for offer in offers.values():
        if offer.patients < least:
            raise SettingsError(
                f"site {offer.site}: has {offer.patients} {offer.unit}s; nothing is told of fewer "
                f"than --min-cases {least}."
            )
        if evaluation.needs_quantiles and not enough_for_quantiles(offer.patients, asked, least):
            raise SettingsError(
                f"--quantiles {' '.join(f'{q:g}' for q in asked)}: site {offer.site} has "
                f"{offer.patients} {offer.unit}s, too few for {least} below, above and between "
                "them; ask for fewer quantiles, or leave the flag out."
            )


def evaluate_at_sites(
    grid: Grid,
    offers: Offers,
    evaluation: Evaluation,
    say: Say,
    answer_deadline: float = _LONGEST,
) -> list[SiteEvaluation]:
    """Send the weights, one fold a message, and ask for the evaluation.

    Parameters
    ----------
    grid
        Reaches the sites.
    offers
        Offers of all sites, by node.
    evaluation
        What they agreed to.
    say
        Called with one line about each step.
    answer_deadline
        Seconds to wait for the answers of a step.

    Returns
    -------
    list
        Answers in the order of the offers.

    Raises
    ------
    SiteError
        If a site fails, is silent, or answers otherwise than agreed; names it.
    """
    names = {node: offer.site for node, offer in offers.items()}
    proposal = evaluation.proposal
    for number, model in enumerate(proposal.models):
        for position, fold in enumerate(model.folds):
            _send(grid, names, evaluation, (number, position), answer_deadline)
            say(f"sent fold {fold} of model {number + 1}")
    for offer in offers.values():
        patients = "" if offer.unit == "case" else f" of {offer.patients} patients"
        say(f"{offer.site}: predicts {offer.cases} cases{patients} on {offer.device or '?'}")
    content = pack_content(MeasureTask(proposal.approval()).to_json())
    read = SiteEvaluation.from_json
    answers = ask_sites(grid, names, MEASURE, read, answer_deadline, content=content)
    for node, answer in answers.items():
        with reading(f"site {names[node]}: its evaluation"):
            check_answer(answer, offers[node], proposal, evaluation.labels)
    return [answers[node] for node in offers]


def _send(
    grid: Grid,
    names: Mapping[int, str],
    evaluation: Evaluation,
    which: tuple[int, int],
    answer_deadline: float,
) -> None:
    """Send the weights of one fold of one model to all sites."""
    model, position = which
    proposal = evaluation.proposal
    sha256 = proposal.models[model].weights[position]
    task = WeightsTask(proposal.approval(), model, position)
    content = pack_content(task.to_json(), pack_weights(evaluation.store.get(sha256)))
    read = WeightsReceipt.from_json
    receipts = ask_sites(grid, names, WEIGHTS, read, answer_deadline, content=content)
    for node, receipt in receipts.items():
        if receipt.sha256 != sha256:
            raise SiteError(f"site {names[node]}: got other weights than were sent")
