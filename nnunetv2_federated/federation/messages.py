"""What crosses the wire between server and site, beside the weight vector."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from nnunetv2_federated.federation.errors import SiteError

WEIGHTS = "weights"
"""Name of the one array in a message: the network's flat float32 vector."""


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
class SiteDescription(_Payload):
    """A site's answer to ``query.describe``, before the first round."""

    site: str
    training_cases: int
    validation_cases: int
    manifest: str
    """Hash of the names, shapes and types of the federated tensors."""
    plans: str
    """Hash of the plans the site trains with."""
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainTask(_Payload):
    """One round's work for one site. Everything a site that just restarted needs is in it."""

    server_round: int
    """Counted from 0."""
    lr: float
    local_epochs: int
    validate_received: int
    """Validation iterations with the received global weights before training; 0 for none."""
    proximal_mu: float = 0.0


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

    def __post_init__(self) -> None:
        _numbers(self.train_loss, self.seconds)
        if type(self.training_cases) is not int:
            raise TypeError(f"training_cases {self.training_cases!r} is no whole number")
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
