"""What the report of a tuning shows, in plain numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nnunetv2_federated.federation.optimism import Optimism

Point = str | int | float


@dataclass(frozen=True)
class ReportedTrial:
    """A trial, as far as it got."""

    number: int
    bracket: int
    values: Mapping[str, Point]
    """Values of its parameters; the default trial's as far as they are in the space."""
    scores: Mapping[int, float]
    """Score at each rung, by the rung's rounds of the default trial."""
    state: str
    """``running``, ``stopped`` or ``complete``."""
    diverged: str | None
    rounds: float
    """Rounds that it had, in rounds of the default trial."""
    megabytes: float
    """Megabytes to and from all sites."""
    seconds: float
    """Seconds of its rounds."""

    @property
    def reached(self) -> int:
        """The highest rung that it reached; 0 for none."""
        return max(self.scores, default=0)

    @property
    def score(self) -> float | None:
        """Score at that rung."""
        return self.scores.get(self.reached)

    @property
    def outcome(self) -> str:
        """What became of it."""
        paused = "paused" if self.state == "running" else self.state
        return "diverged" if self.diverged is not None else paused


@dataclass(frozen=True)
class ReportedBest:
    """The best trial beside the default, at the highest rung that both reached."""

    number: int
    rung: int
    score: float
    default: float
    difference: float
    noise: float
    """Standard error of the difference over the validation batches; NaN if it is not known."""


@dataclass(frozen=True)
class ReportedNested:
    """The default and the best trial on folds that chose nothing."""

    folds: tuple[int | str, ...]
    """Folds that are to be trained."""
    optimism: Optimism | None
    """Scores on those that both were trained on; ``None`` before there is one."""
    default_alone: bool
    """Whether the default is the best trial."""
    diverged: tuple[str, ...]
    """Trainings that diverged, which count 0, each with the reason."""
    rounds: float
    """Rounds of all trainings on other folds, in rounds of the default trial."""
    megabytes: float
    seconds: float


@dataclass(frozen=True)
class TuningData:
    """A study, finished or not."""

    title: str
    rounds: int
    """Rounds of a whole training of the default trial."""
    trials: Sequence[ReportedTrial]
    best: ReportedBest | None
    best_settings: Mapping[str, object]
    importances: Mapping[str, float]
    limits: Mapping[str, float]
    """Limits of the budget, by flag."""
    stopped: str | None
    """Why it stopped early, if it did."""
    settings: Mapping[str, object] = field(default_factory=dict)
    nested: ReportedNested | None = None
    """``None`` without ``--nested``."""

    @property
    def parameters(self) -> list[str]:
        """Names of all parameters, in the order in which trials have them."""
        return list(dict.fromkeys(name for trial in self.trials for name in trial.values))

    @property
    def full(self) -> float:
        """Rounds that all trials would take if each were trained to the end."""
        return float(self.rounds * len(self.trials))

    @property
    def spent(self) -> float:
        """Rounds that all trials had."""
        return sum(trial.rounds for trial in self.trials)


def best_so_far(data: TuningData) -> list[tuple[int, float]]:
    """Return the best score of the highest rung after each trial, in the order of the trials."""
    highest = max((trial.reached for trial in data.trials), default=0)
    found: list[tuple[int, float]] = []
    for trial in data.trials:
        score = trial.scores.get(highest)
        if score is not None:
            best = max(score, found[-1][1]) if found else score
            found.append((trial.number, best))
    return found


@dataclass(frozen=True)
class Axis:
    """An axis of the parallel coordinates: the place of each value, from 0 to 1."""

    name: str
    low: str
    high: str
    places: Mapping[int, float]
    """Place of each trial that has the parameter, by number."""
    words: Mapping[float, str] = field(default_factory=dict)
    """Values that are words, by place."""


def parallel_axes(data: TuningData, logarithms: Sequence[str] = ()) -> list[Axis]:
    """Return an axis for each parameter, and one for the score.

    Parameters
    ----------
    data
        The study.
    logarithms
        Parameters whose logarithm is shown.
    """
    axes = []
    for name in data.parameters:
        values = {t.number: t.values[name] for t in data.trials if name in t.values}
        axes.append(_axis(name, values, logarithm=name in logarithms))
    scores = {t.number: t.score for t in data.trials if t.score is not None}
    return [*axes, _axis("score", scores, logarithm=False)]


def _axis(name: str, values: Mapping[int, Point], *, logarithm: bool) -> Axis:
    if any(isinstance(value, str) for value in values.values()):
        words = sorted({str(value) for value in values.values()})
        place = {word: i / max(1, len(words) - 1) for i, word in enumerate(words)}
        places = {number: place[str(value)] for number, value in values.items()}
        return Axis(name, "", "", places, {place[word]: word for word in words})
    numbers = {number: float(value) for number, value in values.items()}
    low, high = min(numbers.values(), default=0.0), max(numbers.values(), default=0.0)
    return Axis(
        name,
        f"{low:.4g}",
        f"{high:.4g}",
        {number: _place(value, low, high, logarithm) for number, value in numbers.items()},
    )


def _place(value: float, low: float, high: float, logarithm: bool) -> float:
    if high <= low:
        return 0.5
    if logarithm and low > 0:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)
