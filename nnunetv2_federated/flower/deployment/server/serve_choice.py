"""The coordinator's side of choosing the best configuration over a network."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flwr.serverapp import Grid

from nnunetv2_federated.federation.best_configuration import Candidate
from nnunetv2_federated.federation.choosing import (
    ChoiceOffer,
    ChoiceProposal,
    ScoreTask,
    check_score,
)
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.messages import FullValidation
from nnunetv2_federated.flower.asking import ask_sites
from nnunetv2_federated.flower.choosing_app import CHOICE, SCORE
from nnunetv2_federated.flower.deployment.server.serve import ServerSettings
from nnunetv2_federated.flower.deployment.server.serve_once import agreed_sites
from nnunetv2_federated.flower.records import pack_content

Ask = Callable[[Candidate], list[FullValidation]]
"""Returns the means of all sites of a candidate."""


@contextmanager
def choice_at_sites(
    folder: Path,
    server: ServerSettings,
    sites: Sequence[str],
    proposal: ChoiceProposal,
    labels: Collection[str],
    *,
    wait_for_sites: float,
    answer_deadline: float,
    say: Callable[[str], None],
) -> Iterator[Ask]:
    """Let sites on other machines measure candidates.

    Parameters
    ----------
    folder
        Folder of the SuperLink's files, which is deleted at the end.
    server
        Credentials and address of the server.
    sites
        Names of the sites; all are needed.
    proposal
        What the sites approve.
    labels
        Classes or regions that each answer has to have.
    wait_for_sites
        Seconds to wait for a site, at the start and when it was lost.
    answer_deadline
        Seconds to wait for an answer.
    say
        Called with one line about each step.

    Yields
    ------
    callable
        Asks the sites that have enough cases; raises ``SiteError`` if one fails, is silent, or
        answers for another number of cases than it offered, or for other classes.

    Raises
    ------
    RoundError
        If not all sites are there in time.
    SettingsError
        If no site has enough cases.
    """
    with agreed_sites(
        folder,
        server,
        sites,
        kind=CHOICE,
        proposal=proposal.to_json(),
        read=ChoiceOffer.from_json,
        wait_for_sites=wait_for_sites,
        say=say,
    ) as (grid, offers):
        for offer in offers.values():
            if offer.cases < proposal.min_cases:
                say(
                    f"{offer.site} is left out: it has {offer.cases} validation cases, --min-cases "
                    f"is {proposal.min_cases}"
                )
        kept = {node: o for node, o in offers.items() if o.cases >= proposal.min_cases}
        if not kept:
            raise SettingsError(
                f"--min-cases {proposal.min_cases}: no site has so many validation cases; the "
                f"largest has {max(offer.cases for offer in offers.values())}."
            )
        yield lambda candidate: _ask(
            grid, kept, ScoreTask.of(proposal.approval(), candidate), labels, answer_deadline
        )


def _ask(
    grid: Grid,
    offers: dict[int, ChoiceOffer],
    task: ScoreTask,
    labels: Collection[str],
    answer_deadline: float,
) -> list[FullValidation]:
    names = {node: offer.site for node, offer in offers.items()}
    read, content = FullValidation.from_json, pack_content(task.to_json())
    found = ask_sites(grid, names, SCORE, read, answer_deadline, content=content)
    return [check_score(found[node], offer, labels) for node, offer in offers.items()]
