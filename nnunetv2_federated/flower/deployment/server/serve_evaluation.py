"""The coordinator's side of evaluating trained models over a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from nnunetv2_federated.federation.evaluation import EvaluationOffer, SiteEvaluation
from nnunetv2_federated.flower.deployment.server.serve import ServerSettings
from nnunetv2_federated.flower.deployment.server.serve_once import agreed_sites
from nnunetv2_federated.flower.evaluation_app import OFFER
from nnunetv2_federated.flower.model_evaluation import (
    Evaluation,
    check_offers,
    evaluate_at_sites,
)


def serve_evaluation(
    folder: Path,
    server: ServerSettings,
    sites: Sequence[str],
    evaluation: Evaluation,
    *,
    wait_for_sites: float,
    answer_deadline: float,
    say: Callable[[str], None],
) -> tuple[list[EvaluationOffer], list[SiteEvaluation]]:
    """Evaluate models at sites on other machines.

    Parameters
    ----------
    folder
        Folder of the SuperLink's files, which is deleted at the end.
    server
        Credentials and address of the server.
    sites
        Names of the sites; all are needed.
    evaluation
        What the sites are asked.
    wait_for_sites
        Seconds to wait for a site, at the start and when it was lost.
    answer_deadline
        Seconds to wait for an answer, of a site that predicts.
    say
        Called with one line about each step.

    Returns
    -------
    tuple
        Offers and answers, in the order of the sites' names.

    Raises
    ------
    RoundError
        If not all sites are there in time.
    SiteError
        If a site fails, is silent, or answers otherwise than agreed; names it.
    SettingsError
        If a site has too few patients.
    """
    with agreed_sites(
        folder,
        server,
        sites,
        kind=OFFER,
        proposal=evaluation.proposal.to_json(),
        read=EvaluationOffer.from_json,
        wait_for_sites=wait_for_sites,
        say=say,
    ) as (grid, offers):
        check_offers(offers, evaluation)
        answers = evaluate_at_sites(grid, offers, evaluation, say, answer_deadline)
    return list(offers.values()), answers
