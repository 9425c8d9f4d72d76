"""What an attack on a training or on a model found: a few numbers, and the files they are in."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import ConfigDict, TypeAdapter

from nnunetv2_federated.federation.errors import CheckpointError
from nnunetv2_federated.federation.files import write_atomically
from nnunetv2_federated.federation.text import clean

CANARIES_FILE = "canaries.json"
MEMBERSHIP_FILE = "membership.json"
"""File of a :class:`MembershipTest`, beside the checkpoints of the fold that was attacked."""


@dataclass(frozen=True)
class CanaryAudit:
    """A lower bound of epsilon, from guesses which canaries took part in a training."""

    __pydantic_config__: ClassVar = ConfigDict(strict=True, extra="forbid")
    canaries: int
    """Number of canaries, each of which took part or not by a fair coin."""
    included: int
    """Number of canaries that took part."""
    guesses: int
    """Number of guesses from which :attr:`bound` comes; for the other canaries none was made."""
    right: int
    """Number of these guesses that were right."""
    bound: float
    """Lower bound of epsilon; 0 if the guesses show nothing."""
    most: float
    """Bound if every guess had been right: such an audit cannot show more."""
    delta: float
    confidence: float
    """Least probability that a right accounting is not contradicted."""
    epsilon: float
    """What the accountant says of the same steps."""

    @property
    def contradicts(self) -> bool:
        """Whether the training kept less than the accountant says."""
        return self.bound > self.epsilon


@dataclass(frozen=True)
class MembershipTest:
    """How well patients of the training are told from others by a finished model's loss."""

    __pydantic_config__: ClassVar = ConfigDict(strict=True, extra="forbid")
    members: int
    """Number of patients that were trained on."""
    others: int
    """Number of patients that were not."""
    auc: float
    """Area under the ROC curve: probability that a member has the higher score of such a pair."""
    low: float
    """Lower end of the 95 % bootstrap interval of :attr:`auc`, over patients."""
    high: float
    """Upper end of that interval."""
    p_value: float
    """Probability of such an area or a larger one if members and others were alike."""
    found_at_1: float
    """Share of the members that are found when at most 1 % of the others are taken for members."""
    found_at_10: float
    """The same at 10 %."""
    calibrated: bool
    """Whether the losses of a reference model were subtracted."""
    unit: str
    """``patient``, or ``case`` where patients are not known."""


R = TypeVar("R", CanaryAudit, MembershipTest)


def write_attack(path: Path, found: CanaryAudit | MembershipTest) -> None:
    """Write what an attack found as JSON."""
    write_atomically(path, json.dumps(asdict(found), indent=2) + "\n")


def read_attack(path: Path, kind: type[R]) -> R:
    """Read what :func:`write_attack` wrote.

    Raises
    ------
    CheckpointError
        If the file cannot be read, is damaged, or a value does not fit.
    """
    try:
        found: R = TypeAdapter(kind).validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({clean(error, 200)}): delete it, and attack again."
        ) from error
    return found
