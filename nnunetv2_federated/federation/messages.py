"""What crosses the wire between server and site, beside the weight vector.

Every payload is checked when it is built and when it is read, field by field: type, range, length.
A payload that does not fit cannot be built, on either side.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, field
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field
from pydantic.dataclasses import dataclass

from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.federation.payload import (
    LARGEST,
    MEGABYTE,
    STRICT,
    Cases,
    Hash,
    Iterations,
    MinCases,
    Name,
    Names,
    Number,
    Packages,
    Payload,
    Round,
    Seconds,
    SiteName,
    SomeCases,
    Text,
    Voxels,
)

WEIGHTS = "weights"
"""Name of the one array in a message: the network's flat float32 vector."""

WIRE_FORMAT = 7
"""Number of the format of messages; a side with another one is told which side to upgrade."""

VALIDATION_EPOCH = -1
"""In place of a number of validation iterations: as many as the site's trainer has in an epoch."""

BLOCKS = 10
"""Blocks of a score at most."""

ROUGH_SECONDS = 10
"""Under differential privacy a duration is told in multiples of so many seconds."""


@dataclass(frozen=True, config=STRICT)
class SiteSurvey(Payload):
    """A site's answer to ``query.survey``: what its raw dataset declares, before any image is read.

    All but ``site`` and ``cases`` must be equal at all sites.
    """

    site: SiteName
    cases: SomeCases
    channel_names: Annotated[dict[Text, Text], Field(max_length=1000)]
    labels: Annotated[dict[Text, Any], Field(max_length=10_000)]
    regions_class_order: list[int] | None
    file_ending: Text
    reader_writer: Name
    spacing_unit: Text
    nnunetv2: Text

    def declared(self) -> dict[str, Any]:
        """Return what must be equal at all sites."""
        return {k: v for k, v in asdict(self).items() if k not in ("site", "cases")}


@dataclass(frozen=True, config=STRICT)
class FingerprintTask(Payload):
    """Asks for a site's fingerprint."""

    samples_per_case: Annotated[int, Field(ge=1, le=10**8)]
    """Foreground voxels sampled in each case, the same everywhere: equal weight per case."""
    min_cases: MinCases | None
    """Merge bins until each holds so many cases; ``None`` for the finest bins."""
    verify_dataset_integrity: bool


@dataclass(frozen=True, config=STRICT)
class PrepareTask(Payload):
    """The federation's plan, for every site the same."""

    most_bytes: ClassVar[int] = 16 * MEGABYTE

    plans: dict[str, Any]
    """nnU-Net's plans without ``dataset_name``."""
    plans_hash: Hash
    """Hash of the plans, see :func:`nnunetv2_federated.federation.agreement.hash_plans`."""
    fingerprint: dict[str, Any]
    """Fingerprint of the federation in nnU-Net's form, with medians in place of cases."""
    declared: dict[str, Any]
    """:meth:`SiteSurvey.declared` of the federation."""
    configurations: Names
    """Configurations to preprocess."""
    replace_plans: bool
    """Replace plans of the same name that differ."""
    check_only: bool
    """Change nothing; only tell whether it could be done."""


@dataclass(frozen=True, config=STRICT)
class PrepareReport(Payload):
    """A site's answer to ``query.prepare``."""

    site: SiteName
    plans_hash: Hash
    """Hash of the plans as they stand at the site."""
    preprocessed: Annotated[dict[Text, Cases], Field(max_length=100)]
    """Number of preprocessed cases of each configuration."""


_Above0 = Annotated[float, Field(gt=0, le=LARGEST)]


@dataclass(frozen=True, config=STRICT)
class PrivacyTerms(Payload):
    """What a site promises its own patients for the whole of a training, and how."""

    unit: Literal["patient", "case"]
    """What the promise is about; ``case`` where the site has no table that names patients."""
    patients: SomeCases
    """Number of units; it is public, and everybody may know who is among them or not."""
    probability: Annotated[float, Field(gt=0, le=1)]
    """Chance of a patient to take part in an iteration."""
    noise_multiplier: _Above0
    """Standard deviation of the noise as a multiple of the largest norm of a patient's gradient."""
    clip: _Above0
    """Largest norm of a patient's gradient."""
    iterations: Annotated[int, Field(ge=1, le=10**12)]
    """Iterations of the whole training, each of which releases one noisy gradient."""
    delta: Annotated[float, Field(gt=0, lt=1)]
    epsilon: Annotated[float, Field(ge=0, le=LARGEST)]
    """Of this training, if one patient more or less is in the site's data."""
    epsilon_replace_one: Annotated[float, Field(ge=0, le=LARGEST)]
    """Of this training, if one patient is another one."""
    epsilon_spent: Annotated[float, Field(ge=0, le=LARGEST)]
    """Of all trainings with these patients so far, with the whole of this one; at the smaller of
    ``delta`` and the site's usual one."""
    max_epsilon: _Above0 | None
    """Largest ``epsilon_spent`` that the site allows itself; ``None`` for no limit."""
    accountant: Text
    """Software that computed epsilon, with its version."""
    told_of_validation: Literal["withhold", "clear"]
    """Whether losses and voxel counts of validation cases are told, which nothing protects."""


@dataclass(frozen=True, config=STRICT)
class SiteDescription(Payload):
    """A site's answer to ``query.describe``, before the first round."""

    site: SiteName
    training_cases: SomeCases
    validation_cases: Cases
    network_hash: Text
    """Hash of the names, shapes and types of the federated tensors."""
    plans_hash: Text
    """Hash of the plans the site trains with."""
    declared: dict[str, Any] = field(default_factory=dict)
    """Channels and labels, as its ``dataset.json`` has them."""
    versions: Packages = field(default_factory=dict)
    device: Text = ""
    """Device that the site trains on."""
    free_gb: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    """Room for its results, in GB."""
    privacy: PrivacyTerms | None = None
    """What the site promises its patients; ``None`` without differential privacy."""


DICE = "Dice"
"""Name of nnU-Net's own metric."""
_SHARES = ("dice", "iou")
"""Metrics that are shares, by nnU-Net's names in lower case."""


def _check_metric(name: str, value: float | None) -> None:
    if value is not None and name.casefold() in _SHARES and not 0 <= value <= 1:
        raise ValueError(f"{name} {value:g} is not in [0, 1]")


@dataclass(frozen=True, config=STRICT)
class FullValidation(Payload):
    """nnU-Net's full validation of the final model at a site, without a word on single cases."""

    site: SiteName
    cases: Cases
    foreground_mean: Annotated[dict[Text, Number | None], Field(max_length=100)]
    """As in nnU-Net's ``summary.json``, ``None`` where it is not defined; the first metric is the
    one a model of the trainer is measured by."""
    mean: Annotated[
        dict[Text, Annotated[dict[Text, list[Number]], Field(max_length=100)]],
        Field(max_length=10_000),
    ]
    """By label and metric: mean over the cases that have one, and how many these are."""

    def __post_init__(self) -> None:
        for name, value in self.foreground_mean.items():
            _check_metric(name, value)
        for name, pair in (item for metrics in self.mean.values() for item in metrics.items()):
            if len(pair) != 2 or not 0 <= pair[1] <= self.cases:
                raise ValueError(f"{name} is not a mean and a number of at most all cases")
            _check_metric(name, pair[0])

    def check(self, site: str, cases: int, labels: Collection[str] | None) -> FullValidation:
        """Compare an answer with what is known of the site; return it.

        Parameters
        ----------
        site, cases
            Name of the site that was asked, and its number of validation cases.
        labels
            Classes or regions of the dataset; ``None`` for a trainer with a summary of its own.

        Raises
        ------
        SiteError
            If it is of other cases or classes, or has no Dice of one.
        """
        if (self.site, self.cases) != (site, cases):
            raise SiteError("answers for other cases than it said")
        if labels is None or not cases:
            return self
        if self.mean.keys() != set(labels) or not all(DICE in m for m in self.mean.values()):
            raise SiteError("answers for other classes than those of the dataset")
        return self


ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the fine-tuned weights that a site tries for its personal model; 0 is the global
model."""


@dataclass(frozen=True, config=STRICT)
class PersonalReport(Payload):
    """A site's answer to ``train.personal``: it has a personal model, and perhaps how good."""

    site: SiteName
    cases: Cases = 0
    """Validation cases that it was chosen on, of the label that fewest have; 0 if nothing is told
    of it."""
    metric: Text = ""
    """Headline metric of the trainer's full validation."""
    before: Number | None = None
    """Mean of the metric with the global model."""
    after: Number | None = None
    """Mean of the metric with the personal model."""
    alpha: Number | None = None
    """Share of the fine-tuned weights in it, one of :data:`ALPHAS`."""

    def __post_init__(self) -> None:
        numbers = (self.before, self.after, self.alpha)
        told = {self.cases > 0, bool(self.metric), *(number is not None for number in numbers)}
        if len(told) > 1:
            raise ValueError("either all of a personal model is told, or nothing")
        if self.before is None or self.after is None:
            return
        if self.alpha not in ALPHAS:
            raise ValueError(f"alpha is none of {', '.join(map(str, ALPHAS))}")
        if self.after < self.before or (self.alpha == 0 and self.after != self.before):
            raise ValueError("a personal model is better than the global one, or is that one")
        _check_metric(self.metric, self.before)
        _check_metric(self.metric, self.after)


@dataclass(frozen=True, config=STRICT)
class TrainTask(Payload):
    """One round's work for one site. Everything a site that just restarted needs is in it."""

    server_round: Round
    """Counted from 0. An evaluation has the number of all rounds, the full validation one more, and
    the personal model two more."""
    lr: Annotated[float, Field(ge=0, le=1)]
    local_epochs: Annotated[int, Field(ge=0, le=10**6)]
    validate_received: Annotated[int, Field(ge=VALIDATION_EPOCH, le=10**7)]
    """Validation iterations with the received global weights before training; 0 for none,
    ``VALIDATION_EPOCH`` for the trainer's own number."""
    proximal_mu: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    seconds: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """Seconds to train at most, ``None`` for no limit; then the site answers with what it has."""
    run_id: Annotated[str, Field(max_length=128)] = ""
    """Identifies the run a site on another machine joined, see :attr:`Proposal.run_id`."""


@dataclass(frozen=True, config=STRICT)
class Validation(Payload):
    """Sums over validation iterations: loss, and voxel counts of each foreground class."""

    iterations: Iterations
    loss: Number | None
    """``None`` if it was not a finite number."""
    tp: Voxels
    fp: Voxels
    fn: Voxels

    def __post_init__(self) -> None:
        if not len(self.tp) == len(self.fp) == len(self.fn):
            raise ValueError("tp, fp and fn are of different lengths")

    @classmethod
    def of(
        cls, iterations: int, loss: float, tp: list[float], fp: list[float], fn: list[float]
    ) -> Self:
        """Build one from sums, of which the loss need not be finite."""
        return cls(iterations, loss if math.isfinite(loss) else None, tp, fp, fn)


@dataclass(frozen=True, config=STRICT)
class SiteScore(Payload):
    """A site's answer to ``evaluate.score``: sums over blocks of validation batches."""

    site: SiteName
    blocks: Annotated[list[Validation], Field(min_length=1, max_length=BLOCKS)]

    def check(self, site: str, classes: int) -> SiteScore:
        """Compare an answer with what is known of the site and the dataset; return it.

        Raises
        ------
        SiteError
            If it is another site's, or of other classes.
        """
        if self.site != site:
            raise SiteError("answers for another site")
        if any(len(block.tp) != classes for block in self.blocks):
            raise SiteError(f"its score is not of {classes} classes")
        return self


@dataclass(frozen=True, config=STRICT)
class TrainReport(Payload):
    """A site's answer to a train message."""

    site: SiteName
    training_cases: SomeCases
    train_loss: Number | None
    """Mean over the round's iterations; ``None`` under differential privacy, as it is an exact
    function of the patients."""
    validation: Validation
    """Validation of the locally trained weights (client side)."""
    received: Validation | None
    """Validation of the weights as they were received (server side), if asked for."""
    seconds: Seconds
    completed: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the round's iterations that were done, above 0 and at most 1."""

    def __post_init__(self) -> None:
        if self.private and self.seconds % ROUGH_SECONDS:
            raise ValueError(
                f"seconds {self.seconds:g} are more exact than tens, without a train_loss"
            )

    @property
    def private(self) -> bool:
        """Whether the report is of a training with differential privacy."""
        return self.train_loss is None
