"""What crosses the wire when the best configuration is chosen from sites' own predictions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import field
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from nnunetv2_federated.federation.best_configuration import Candidate, most_questions
from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.evaluation import FEWEST_CASES
from nnunetv2_federated.federation.messages import FullValidation
from nnunetv2_federated.federation.payload import (
    STRICT,
    Cases,
    FoldsByConfiguration,
    Hash,
    Name,
    Packages,
    Payload,
    SiteName,
)
from nnunetv2_federated.federation.proposals import Approvable
from nnunetv2_federated.federation.queue import Folds, check_queue

_MOST_LABELS = 10_000
Labels = Annotated[
    list[Annotated[int, Field(ge=0, le=10**6)]], Field(min_length=1, max_length=_MOST_LABELS)
]


@dataclass(frozen=True, config=STRICT)
class ChoiceProposal(Approvable):
    """Asks a site to measure the predictions that it kept of its validation cases."""

    what = "choice"
    not_covered_by_approval = ("run_ids",)

    dataset: Name
    """Name of the dataset at the server; a site's own may differ."""
    trainer: Name
    plans_name: Name
    plans_hash: Hash
    queue: FoldsByConfiguration
    """Folds by configuration; the same folds of each."""
    ensembles: bool
    """Whether ensembles of two configurations are measured, too."""
    min_cases: Annotated[int, Field(ge=FEWEST_CASES, le=10**6)]
    """Fewest validation cases of a site that takes part."""
    run_ids: dict[Name, Annotated[list[Name], Field(min_length=1, max_length=100)]]
    """Identifiers of the trainings, as :attr:`queue` has their folds."""
    packages: Packages = field(default_factory=dict)
    """Names and versions of the packages that define what plans and trainer name."""

    def __post_init__(self) -> None:
        first = next(iter(self.queue))
        try:
            check_queue(self.folds, first, self.queue[first][0])
        except SettingsError as error:
            raise ValueError(str(error)) from error
        if any(folds != self.queue[first] for folds in self.queue.values()):
            raise ValueError("the configurations are of different folds")
        if {name: len(folds) for name, folds in self.queue.items()} != {
            name: len(ids) for name, ids in self.run_ids.items()
        }:
            raise ValueError("the trainings do not have one identifier each")

    @property
    def folds(self) -> dict[str, Folds]:
        """The queue, as a run has it."""
        return {name: tuple(folds) for name, folds in self.queue.items()}

    def most_questions(self, labels: int) -> int:
        """Return how many candidates may be measured, of a dataset with so many classes."""
        return most_questions(len(self.queue), labels, ensembles=self.ensembles)


@dataclass(frozen=True, config=STRICT)
class ChoiceOffer(Payload):
    """A site's answer to ``query.choice``: how many validation cases it has predicted."""

    site: SiteName
    cases: Cases


@dataclass(frozen=True, config=STRICT)
class ScoreTask(Payload):
    """Asks for the means of one candidate."""

    approval: Hash
    """:meth:`.Approvable.approval` of the proposal."""
    configurations: Annotated[list[Name], Field(min_length=1, max_length=2)]
    removals: Annotated[list[Labels], Field(max_length=_MOST_LABELS)]

    @classmethod
    def of(cls, approval: str, candidate: Candidate) -> ScoreTask:
        """Ask for a candidate."""
        removals = [list(labels) for labels in candidate.removals]
        return cls(approval, list(candidate.configurations), removals)

    @property
    def candidate(self) -> Candidate:
        """What is to be measured."""
        return Candidate(tuple(self.configurations), tuple(map(tuple, self.removals)))


def check_score(
    answer: FullValidation, offer: ChoiceOffer, labels: Collection[str]
) -> FullValidation:
    """Return a site's answer after comparing it with what it offered, and with what was asked.

    Parameters
    ----------
    answer, offer
        What the site answered, and what it had offered before.
    labels
        Classes or regions of the dataset.

    Raises
    ------
    SiteError
        If it is of other cases or classes, or has no Dice of one.
    """
    try:
        return answer.check(offer.site, offer.cases, labels)
    except SiteError as error:
        raise SiteError(f"site {offer.site}: {error}") from error
