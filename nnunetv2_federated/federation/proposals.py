"""What a coordinator asks a site on another machine to take part in, once it was approved."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, field
from typing import Annotated, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.payload import (
    STRICT,
    Fold,
    FoldsByConfiguration,
    Hash,
    MinCases,
    Name,
    Names,
    Packages,
    Payload,
)
from nnunetv2_federated.federation.queue import Folds, check_queue, ids_of_queue
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.federation.study import StudyTerms, TrialNumber


class Approvable(Payload):
    """A proposal to a site on another machine, which takes part only once it was approved."""

    what: ClassVar[str]
    """Name of what is proposed, for the site's engineer."""
    not_covered_by_approval: ClassVar[tuple[str, ...]] = ()
    """Fields that an approval does not cover."""

    def approval(self) -> str:
        """SHA-256 of all that is the same for every site and every start: what a site approves."""
        content: dict[str, Any] = asdict(self)  # type: ignore[call-overload]  # as of Payload
        content = {k: v for k, v in content.items() if k not in self._not_covered()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _not_covered(self) -> tuple[str, ...]:
        """Return the fields that this approval does not cover."""
        return self.not_covered_by_approval


@dataclass(frozen=True, config=STRICT)
class PlanProposal(Approvable):
    """Invites a site to joint planning: its fingerprint, and preprocessing with the plans."""

    what = "planning"

    dataset: Name
    """Name of the dataset at the server; a site's own may differ."""
    planner: Annotated[dict[Name, Any], Field(max_length=20)]
    """nnU-Net's planner and its options."""
    configurations: Names
    """Configurations to preprocess at most."""
    min_cases: MinCases | None
    """Fewest cases in a bin of the fingerprint, ``None`` for the finest bins."""
    verify_dataset_integrity: bool
    replace_plans: bool
    """Replace plans of the same name that differ."""
    packages: Packages = field(default_factory=dict)
    """Names and versions of the packages that define what the planner and the plans name."""


@dataclass(frozen=True, config=STRICT)
class Proposal(Approvable):
    """Asks a site to take part in a training, or in the next one of a queue, or of a study.

    What is approved is the whole queue, or study; which of its trainings comes next is not covered.
    """

    what = "federation"
    not_covered_by_approval = ("run_id", "site_index", "configuration", "fold", "trial")

    run_id: Name
    """Identifies the run: a new one starts from nothing, the same one continues."""
    dataset: Name
    """Name of the dataset at the server; a site's own may differ."""
    configuration: Name
    fold: Fold
    queue: FoldsByConfiguration
    """Folds by configuration of all trainings that are proposed, this one among them."""
    trainer: Name
    plans_name: Name
    plans_hash: Hash
    site_index: Annotated[int, Field(ge=0, le=100_000)]
    """Index of the site among all, from 0: its random numbers begin from it."""
    settings: Annotated[dict[Name, Any], Field(max_length=100)]
    """Settings of the federation, see :class:`.settings.FederationSettings`."""
    packages: Packages = field(default_factory=dict)
    """Names and versions of the packages that define what plans, trainer and settings name."""
    npz: bool = False
    """Keep the softmax outputs of the full validation at the site."""
    study: StudyTerms | None = None
    """Study that this training is a trial of; ``settings`` are then only bound to be of it."""
    trial: TrialNumber | None = None
    """Number of the trial."""

    def __post_init__(self) -> None:
        try:
            check_queue(self.folds, self.configuration, self.fold)
            self.run_ids  # noqa: B018  # raises if the identifier is not of the queue
            self._check_trial()
        except (SettingsError, TypeError) as error:
            raise ValueError(str(error)) from error

    def _check_trial(self) -> None:
        if self.study is None:
            if self.trial is not None:
                raise SettingsError("a trial is of a study.")
            return
        if self.trial is None or self.count > 1 or self.npz:
            raise SettingsError("a trial of a study has a number, is one training, and has no npz.")
        if self.fold == "all":
            raise SettingsError("a study needs a fold that leaves validation cases.")
        if self.run_id != self.study.run_id(self.trial):
            raise SettingsError(f"run {self.run_id} is not trial {self.trial} of the study.")
        self.study.check_trial(self.trial, FederationSettings(**self.settings))

    def _not_covered(self) -> tuple[str, ...]:
        covered = self.study is None  # otherwise by the study
        return self.not_covered_by_approval if covered else (*super()._not_covered(), "settings")

    @property
    def folds(self) -> dict[str, Folds]:
        """The queue, as a run has it."""
        return {name: tuple(folds) for name, folds in self.queue.items()}

    @property
    def current(self) -> dict[str, Folds]:
        """The training of the queue that comes next, as a queue of its own."""
        return {self.configuration: (self.fold,)}

    @property
    def run_ids(self) -> list[str]:
        """Identifiers of all trainings of the queue."""
        queue = self.folds if self.count > 1 else {}
        return ids_of_queue(self.run_id, self.configuration, self.fold, queue)

    @property
    def count(self) -> int:
        """Number of trainings that are proposed."""
        return sum(len(folds) for folds in self.queue.values())
