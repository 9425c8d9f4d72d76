"""What crosses the wire when a trained model is evaluated at sites, without training.

No value of a single patient is among it: a mean and its variance stand for at least as many
patients as the site's approval says, or they are left out.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field
from pydantic.dataclasses import dataclass

from nnunetv2_federated.federation.evaluated_model import MOST_FOLDS, ModelDescription
from nnunetv2_federated.federation.payload import (
    STRICT,
    Hash,
    Number,
    Packages,
    Payload,
    SiteName,
    SomeCases,
    Text,
)
from nnunetv2_federated.federation.proposals import Approvable

FEWEST_CASES = 3
"""Smallest ``min_cases``: mean and variance of two patients give both values away."""
Metric = Literal["Dice", "IoU", "NSD", "HD95"]
METRICS: tuple[Metric, ...] = get_args(Metric)
SURFACE: tuple[Metric, ...] = ("NSD", "HD95")
"""Metrics that MONAI computes."""
SHARES: tuple[Metric, ...] = ("Dice", "IoU", "NSD")
"""Metrics that are in [0, 1]."""
Unit = Literal["patient", "case"]
Subset = Literal["Tr", "Ts"]
_MEGABYTE = 2**20
_MOST_QUANTILES = 9
Quantile = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, config=STRICT)
class EvaluationProposal(Approvable):
    """Asks a site to evaluate one trained model, or two on the same cases."""

    what = "evaluation"
    most_bytes: ClassVar[int] = 16 * _MEGABYTE

    models: Annotated[list[ModelDescription], Field(min_length=1, max_length=2)]
    subset: Subset
    """``Tr`` for all labelled cases of ``imagesTr``, ``Ts`` for ``imagesTs``."""
    metrics: Annotated[list[Metric], Field(max_length=len(METRICS))]
    """Metrics of each label; none for a classifier, whose metrics are all answered."""
    min_cases: Annotated[int, Field(ge=FEWEST_CASES, le=10**6)]
    """Fewest patients behind anything that is answered."""
    quantiles: Annotated[list[Quantile], Field(max_length=_MOST_QUANTILES)]
    """Quantiles over patients that are answered where enough patients are on each side."""
    packages: Packages = field(default_factory=dict)
    """Names and versions of the packages that define what the plans name."""

    def __post_init__(self) -> None:
        if len({model.classifies for model in self.models}) > 1:
            raise ValueError("one model segments, the other classifies")
        if sorted(set(self.quantiles)) != self.quantiles:
            raise ValueError("quantiles are not in ascending order")


@dataclass(frozen=True, config=STRICT)
class EvaluationOffer(Payload):
    """A site's answer to ``query.evaluation``, before any image is read."""

    site: SiteName
    cases: SomeCases
    """Number of cases with a reference."""
    patients: SomeCases
    """Number of units that count: patients, or cases where patients are not known."""
    unit: Unit
    versions: Packages = field(default_factory=dict)
    device: Text = ""

    def __post_init__(self) -> None:
        _at_most("patients", self.patients, self.cases)


@dataclass(frozen=True, config=STRICT)
class WeightsTask(Payload):
    """Brings the weights of one fold of one model; the message's array has them."""

    approval: Hash
    """:meth:`.Approvable.approval` of the proposal."""
    model: Annotated[int, Field(ge=0, le=1)]
    fold: Annotated[int, Field(ge=0, lt=MOST_FOLDS)]
    """Position in the model's list of folds."""


@dataclass(frozen=True, config=STRICT)
class WeightsReceipt(Payload):
    """A site's answer to ``query.weights``: the hash of what it has got."""

    site: SiteName
    sha256: Hash


@dataclass(frozen=True, config=STRICT)
class MeasureTask(Payload):
    """Asks for the evaluation, once a site has all weights."""

    approval: Hash


@dataclass(frozen=True, config=STRICT)
class Moments:
    """Mean and variance of one metric at one site."""

    cases: SomeCases
    """Number of cases that have a value."""
    patients: SomeCases
    """Number of patients that these are of."""
    mean: Number
    """Over cases, as nnU-Net takes it."""
    variance: Annotated[float, Field(ge=0, le=1e12)]
    """Over patients, with ``patients - 1`` in the denominator, see :func:`.moments.moments`."""
    quantiles: Annotated[list[Number], Field(max_length=_MOST_QUANTILES)] | None = None
    """Over patients; ``None`` where there are too few."""

    def __post_init__(self) -> None:
        _at_most("patients", self.patients, self.cases)


OfLabels = Annotated[
    dict[Text, Annotated[dict[Metric, Moments | None], Field(max_length=len(METRICS))]],
    Field(max_length=10_000),
]


@dataclass(frozen=True, config=STRICT)
class MomentsOfLabels:
    """Moments of each label and metric; ``None`` where they are of too few patients."""

    labels: OfLabels
    """By label or region, as nnU-Net writes it in ``summary.json``."""
    foreground: Annotated[dict[Metric, Moments | None], Field(max_length=len(METRICS))]
    """Of the mean over those labels that are not left out."""


Scores = Annotated[dict[Text, Number | None], Field(max_length=100)]
"""Metrics of a classifier at one site, ``None`` where one is not defined."""


@dataclass(frozen=True, config=STRICT)
class SiteEvaluation(Payload):
    """A site's answer to ``query.measure``."""

    most_bytes: ClassVar[int] = 16 * _MEGABYTE

    site: SiteName
    cases: SomeCases
    patients: SomeCases
    unit: Unit
    models: Annotated[list[MomentsOfLabels], Field(max_length=2)]
    """Of each model that segments, in the order of the proposal."""
    difference: MomentsOfLabels | None
    """Of the first model's value minus the second's, case by case; only with two models."""
    scores: Annotated[list[Scores | None], Field(max_length=2)]
    """Of each model that classifies; ``None`` where a class has too few patients."""

    def __post_init__(self) -> None:
        _at_most("patients", self.patients, self.cases)
        for model in self.models:
            _check_shares(model, 0.0)
        if self.difference is not None:
            _check_shares(self.difference, -1.0)
        for moments in self.all_moments():
            _at_most("cases", moments.cases, self.cases)
            _at_most("patients", moments.patients, self.patients)

    def all_moments(self) -> list[Moments]:
        """Return whatever moments the answer holds."""
        parts = [*self.models, *([self.difference] if self.difference else [])]
        metrics = [m for part in parts for m in (*part.labels.values(), part.foreground)]
        return [moments for of in metrics for moments in of.values() if moments is not None]


def _at_most(what: str, number: int, most: int) -> None:
    if number > most:
        raise ValueError(f"{number} {what}, but there are {most}")


def _check_shares(part: MomentsOfLabels, least: float) -> None:
    for metrics in (*part.labels.values(), part.foreground):
        for name, found in metrics.items():
            values = [] if found is None else [found.mean, *(found.quantiles or ())]
            if name in SHARES and not all(least <= value <= 1 for value in values):
                raise ValueError(f"a {name} is not in [{least:g}, 1]")
