"""A study over a network: what a tuning may do at the sites, proposed and approved once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.halving import rung, with_equal_work
from nnunetv2_federated.federation.payload import (
    STRICT,
    Iterations,
    Name,
    Payload,
    Round,
    SiteName,
)
from nnunetv2_federated.federation.search_space import OneOf, SearchSpace, Value
from nnunetv2_federated.federation.search_table import read_search_space
from nnunetv2_federated.federation.settings import FederationSettings

MOST_TRIALS = 10_000
MOST_VALUES = 30
"""Most values of a list in a study over a network: an engineer reads them all."""
StudyId = Annotated[Name, Field(min_length=1, max_length=64)]
TrialNumber = Annotated[int, Field(ge=0, lt=MOST_TRIALS)]
_Above0 = Annotated[float, Field(gt=0, le=1e9)]


@dataclass(frozen=True, config=STRICT)
class StudyTerms(Payload):
    """What a site approves of a study; every trial is compared with it there."""

    study_id: StudyId
    """Identifies the study: another one has to be approved anew."""
    base: Annotated[dict[Name, Any], Field(max_length=100)]
    """Settings of the default trial, see :class:`.settings.FederationSettings`."""
    search: Annotated[dict[str, Any], Field(max_length=100)]
    """What varies, see :meth:`.SearchSpace.to_plain`."""
    trials: Annotated[int, Field(ge=1, le=MOST_TRIALS)]
    rounds: Annotated[Round, Field(ge=1)]
    """Most rounds of all trials together."""
    reduction: Annotated[int, Field(ge=2, le=1000)]
    rungs: Annotated[int, Field(ge=1, le=20)]
    """A trial is scored at shares ``reduction ** -k`` of its rounds, for ``k < rungs``."""
    score_iterations: Annotated[Iterations, Field(ge=1)]
    """Most validation iterations of a score at one site."""
    evaluations: Annotated[int, Field(ge=1, le=10**6)]
    """Most scores, and validations of a last round's model, of all trials together."""
    hours: _Above0 | None = None
    """Most hours at one site; ``None`` for no limit but the site's own."""
    gigabytes: _Above0 | None = None
    """Most gigabytes to and from one site; ``None`` for no limit."""

    def __post_init__(self) -> None:
        try:
            plain = self.space.to_plain()
        except (SettingsError, TypeError, AttributeError) as error:
            raise ValueError(str(error)) from error
        if plain != self.search:
            raise ValueError("search is not written as this package writes it")
        problem = problem_of_study(self.base_settings, self.space)
        if problem is not None:
            raise ValueError(problem)

    @property
    def space(self) -> SearchSpace:
        """What varies; checked like the table of a settings file."""
        table = {name: _as_in_a_file(values) for name, values in self.search.items()}
        return read_search_space(table, self.base_settings)

    @property
    def base_settings(self) -> FederationSettings:
        """Settings of the default trial."""
        return FederationSettings(**self.base)

    @property
    def most_local_epochs(self) -> int:
        """Largest number of local epochs of a trial."""
        most = self.base_settings.local_epochs
        for parameter in self.space.parameters:
            if parameter.name == "local_epochs":
                values = parameter.values
                ends = values.values if isinstance(values, OneOf) else (values.high,)
                most = max(most, *(int(end) for end in ends))
        return most

    @property
    def account(self) -> str:
        """Name under which a site notes what it has given to the study."""
        return f"study {self.study_id}"

    def check_spent(self, hours: float, gigabytes: float) -> None:
        """Raise ``SiteError`` if a site has given all that it approved of hours or gigabytes."""
        for what, spent, most in (
            ("hours", hours, self.hours),
            ("gigabytes", gigabytes, self.gigabytes),
        ):
            if most is not None and spent >= most:
                raise SiteError(f"the {most:g} {what} approved for the study are spent")

    def check_count(self, what: Literal["rounds", "evaluations"], given: int) -> None:
        """Raise ``SiteError`` if a site has given all rounds, or evaluations, that it approved."""
        most = self.rounds if what == "rounds" else self.evaluations
        if given >= most:
            raise SiteError(f"the {most} {what} approved for the study are given")

    def run_id(self, number: int) -> str:
        """Return the identifier of a trial's training."""
        return f"{self.study_id}.{trial_name(number)}"

    def settings_of(self, values: Mapping[str, Value]) -> FederationSettings:
        """Return the settings of a trial, with as many rounds as take the default's steps."""
        base = self.base_settings
        # where iterations_per_epoch varies, the default has its own; else all have the trainer's
        return with_equal_work(self.space.apply(base, values), base, None)

    def check_trial(self, number: int, settings: FederationSettings) -> None:
        """Compare the settings of a trial with what was approved.

        Raises
        ------
        SettingsError
            If there is no such trial, or its settings are not the default's with values of the
            space; names the first that differs.
        """
        if not 0 <= number < self.trials:
            raise SettingsError(f"trial {number}: approved are {self.trials} trials, from 0.")
        expected = self.base_settings
        if number:
            expected = self.settings_of(self.space.values_of(settings))
        came = asdict(settings)
        for name, value in asdict(expected).items():
            if came[name] != value:
                raise SettingsError(f"trial {number}: {name} {came[name]}: approved is {value}.")

    def scored_after(self, settings: FederationSettings) -> set[int]:
        """Return the rounds after which a trial of these settings is scored."""
        return {rung(settings.rounds, self.reduction, k) for k in range(self.rungs)} - {0}


@dataclass(frozen=True, config=STRICT)
class StudyEnd(Payload):
    """Tells a site which trials of a study get no more rounds, and whether any comes."""

    study_id: StudyId
    trials: Annotated[list[TrialNumber], Field(max_length=MOST_TRIALS)]
    """Trials that have ended."""
    finished: bool
    """Whether the study is at its end."""


@dataclass(frozen=True, config=STRICT)
class StudyReceipt(Payload):
    """A site's answer to ``query.ended``."""

    site: SiteName


def problem_of_study(base: FederationSettings, space: SearchSpace) -> str | None:
    """Return why settings cannot be those of a study over a network; ``None`` if they can."""
    if base.withholds:
        return "--dp-validation withhold: a study chooses by what its sites tell of validation"
    if base.personalises:
        return "--personal finetune: no trial is chosen by personal models"
    names = {parameter.name for parameter in space.parameters}
    if "iterations_per_epoch" in names and base.iterations_per_epoch is None:
        return (
            "[search] iterations_per_epoch: over a network give iterations_per_epoch outside "
            "[search], too, so that sites can compare the steps of trials"
        )
    for parameter in space.parameters:
        values = parameter.values
        if isinstance(values, OneOf) and len(values.values) > MOST_VALUES:
            return f"[search] {parameter.name}: more than {MOST_VALUES} values; give a range"
    return None


def trial_name(number: int) -> str:
    """Return the name of a trial, and of its folder."""
    return f"trial_{number:03d}"


def _as_in_a_file(values: Any) -> Any:  # noqa: ANN401  # checked by whoever reads it
    """Return a range as it stands in a settings file, where whole ends are written as such."""
    if not isinstance(values, Mapping):
        return values
    written = {key: value for key, value in values.items() if key != "whole"}
    if values.get("whole"):
        written |= {key: int(written[key]) for key in ("low", "high") if key in written}
    return written
