"""What crosses the wire between server and site, beside the weight vector."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self

from nnunetv2_federated.federation.errors import SiteError

WEIGHTS = "weights"
"""Name of the one array in a message: the network's flat float32 vector."""


VALIDATION_EPOCH = -1
"""In place of a number of validation iterations: as many as the site's trainer has in an epoch."""


class _Payload:
    """JSON text in, JSON text out; an unknown or missing key is refused."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))  # type: ignore[call-overload]  # subclasses are dataclasses

    @classmethod
    def from_json(cls, text: str) -> Self:
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise SiteError(f"not a valid {cls.__name__}: {error}") from error


@dataclass(frozen=True)
class SiteSurvey(_Payload):
    """A site's answer to ``query.survey``: what its raw dataset declares, before any image is read.

    All but ``site`` and ``cases`` must be equal at all sites.
    """

    site: str
    cases: int
    channel_names: dict[str, str]
    labels: dict[str, Any]
    regions_class_order: list[int] | None
    file_ending: str
    reader_writer: str
    spacing_unit: str
    nnunetv2: str

    def __post_init__(self) -> None:
        if type(self.cases) is not int or self.cases < 1:
            raise TypeError(f"cases {self.cases!r} is no positive whole number")

    def declared(self) -> dict[str, Any]:
        """Return what must be equal at all sites."""
        return {k: v for k, v in asdict(self).items() if k not in ("site", "cases")}


@dataclass(frozen=True)
class FingerprintTask(_Payload):
    """Asks for a site's fingerprint."""

    samples_per_case: int
    """Foreground voxels sampled in each case, the same everywhere: equal weight per case."""
    min_cases: int | None
    """Merge bins until each holds so many cases; ``None`` for the finest bins."""
    verify_dataset_integrity: bool


@dataclass(frozen=True)
class PrepareTask(_Payload):
    """The federation's plan, for every site the same."""

    plans: dict[str, Any]
    """nnU-Net's plans without ``dataset_name``."""
    sha256: str
    """Of the plans, see :func:`nnunetv2_federated.federation.planning.hash_plans`."""
    fingerprint: dict[str, Any]
    """The federation's, in nnU-Net's form, with medians in place of cases."""
    declared: dict[str, Any]
    """:meth:`SiteSurvey.declared` of the federation."""
    configurations: list[str]
    """What to preprocess."""
    replace_plans: bool
    """Replace plans of the same name that differ."""
    check_only: bool
    """Change nothing; only tell whether it could be done."""


@dataclass(frozen=True)
class PrepareReport(_Payload):
    """A site's answer to ``query.prepare``."""

    site: str
    sha256: str
    """Of the plans as they stand at the site."""
    preprocessed: dict[str, int]
    """Cases of each configuration."""


@dataclass(frozen=True)
class SiteDescription(_Payload):
    """A site's answer to ``query.describe``, before the first round."""

    site: str
    training_cases: int
    validation_cases: int
    manifest: str
    """Hash of the names, shapes and types of the federated tensors."""
    plans: str
    """Hash of the plans the site trains with."""
    declared: dict[str, Any] = field(default_factory=dict)
    """Channels and labels, as its ``dataset.json`` has them."""
    versions: dict[str, str] = field(default_factory=dict)
    device: str = ""
    """What it trains on."""
    free_gb: float = 0.0
    """Room for its results, in GB."""

    def __post_init__(self) -> None:
        _numbers(self.training_cases, self.validation_cases, self.free_gb)
        _of(dict, self.declared, self.versions)
        _of(str, self.site, self.manifest, self.plans, self.device, *self.versions.values())


class _Agreement(_Payload):
    """What a site that is not on the server's machine takes part in only once it was approved."""

    what: ClassVar[str]
    """In words, for the site's engineer."""
    of_each_start: ClassVar[tuple[str, ...]] = ()
    """Fields that an approval does not cover."""

    def approval(self) -> str:
        """SHA-256 of all that is the same for every site and every start: what a site approves."""
        content: dict[str, Any] = asdict(self)  # type: ignore[call-overload]  # as above
        content = {k: v for k, v in content.items() if k not in self.of_each_start}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class PlanProposal(_Agreement):
    """Asks a site to be planned for: to be fingerprinted, and to preprocess with the plans."""

    what = "planning"

    dataset: str
    """The server's name for it; a site's own may differ."""
    planner: dict[str, Any]
    """nnU-Net's planner and its options."""
    configurations: list[str]
    """What to preprocess at most."""
    min_cases: int | None
    """Fewest cases in a bin of the fingerprint, ``None`` for the finest bins."""
    verify_dataset_integrity: bool
    replace_plans: bool
    """Replace plans of the same name that differ."""


@dataclass(frozen=True)
class Proposal(_Agreement):
    """Asks a site to take part in a training."""

    what = "federation"
    of_each_start = ("started", "position")

    started: str
    """Identifies the run: a new one starts from nothing, the same one continues."""
    dataset: str
    """The server's name for it; a site's own may differ."""
    configuration: str
    fold: int | str
    trainer: str
    plans: str
    """Name of the plans."""
    plans_hash: str
    position: int
    """Of the site among all, from 0: its random numbers begin from it."""
    settings: dict[str, Any]
    """Of the federation, see :class:`.settings.FederationSettings`."""


@dataclass(frozen=True)
class FullValidation(_Payload):
    """nnU-Net's full validation of the final model at a site, without a word on single cases."""

    site: str
    cases: int
    foreground_mean: dict[str, float]
    """As in nnU-Net's ``summary.json``; the first metric is the one the trainer is judged by."""
    mean: dict[str, dict[str, list[float]]]
    """By label and metric: mean over the cases that have one, and how many these are."""

    def __post_init__(self) -> None:
        _of(str, self.site)
        _of(int, self.cases)
        _of(dict, self.foreground_mean, self.mean, *self.mean.values())
        _numbers(*self.foreground_mean.values())
        for mean, count in (pair for metrics in self.mean.values() for pair in metrics.values()):
            _numbers(mean, count)


@dataclass(frozen=True)
class TrainTask(_Payload):
    """One round's work for one site. Everything a site that just restarted needs is in it."""

    server_round: int
    """Counted from 0."""
    lr: float
    local_epochs: int
    validate_received: int
    """Validation iterations with the received global weights before training; 0 for none,
    ``VALIDATION_EPOCH`` for the trainer's own number."""
    proximal_mu: float = 0.0
    seconds: float | None = None
    """How long to train at most, ``None`` for no limit; then the site answers with what it has."""


@dataclass(frozen=True)
class Validation(_Payload):
    """Sums over validation iterations: loss, and voxel counts of each foreground class."""

    iterations: int
    loss: float
    tp: list[float]
    fp: list[float]
    fn: list[float]

    def __post_init__(self) -> None:
        _numbers(self.iterations, self.loss, *self.tp, *self.fp, *self.fn)
        if not len(self.tp) == len(self.fp) == len(self.fn):
            raise ValueError("tp, fp and fn are of different lengths")


def _of(kind: type, *values: object) -> None:
    """Raise ``TypeError`` for what came from a site and is of another type."""
    for value in values:
        if type(value) is not kind:
            raise TypeError(f"{value!r} is no {kind.__name__}")


def _numbers(*values: object) -> None:
    """Raise ``TypeError`` for what came from a site and is no number."""
    for value in values:
        if type(value) not in (int, float):
            raise TypeError(f"{value!r} is no number")


@dataclass(frozen=True)
class TrainReport(_Payload):
    """A site's answer to a train message."""

    site: str
    training_cases: int
    train_loss: float
    validation: dict[str, Any]
    """A ``Validation`` of the locally trained weights (client side)."""
    received: dict[str, Any] | None
    """A ``Validation`` of the weights as they were received (server side), if asked for."""
    seconds: float
    completed: float = 1.0
    """Share of the round's iterations that were done, above 0 and at most 1."""

    def __post_init__(self) -> None:
        _numbers(self.train_loss, self.seconds, self.completed)
        if not 0 < self.completed <= 1:
            raise ValueError(f"completed {self.completed} is not in (0, 1]")
        _of(int, self.training_cases)
        # both raise TypeError or ValueError if they do not fit
        _ = self.local, self.global_model

    @property
    def local(self) -> Validation:
        """Validation of the locally trained weights."""
        return Validation(**self.validation)

    @property
    def global_model(self) -> Validation | None:
        """Validation of the global weights as received."""
        return None if self.received is None else Validation(**self.received)
