"""``model_card.json``: what a released model is for, what it was trained on, and how it did.

Only numbers over several cases are in it, and no name of a case, patient or folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from nnunetv2_federated.federation.errors import CheckpointError
from nnunetv2_federated.federation.evaluation import FEWEST_CASES
from nnunetv2_federated.federation.files import format_problem
from nnunetv2_federated.federation.history import Count, SiteSummary
from nnunetv2_federated.federation.payload import first_problem

CARD_FILE = "model_card.json"
MARKDOWN_FILE = "MODEL_CARD.md"
FORMAT = 1
"""Number of the format of ``model_card.json``."""
STOCK = "nnU-Net"
"""What runs a model that needs nothing else."""

_CHECKED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Value = Annotated[float, Field(strict=True)]
Metrics = Mapping[str, Value | None]
"""Mean of each metric, by name; ``None`` where it is not defined."""


@dataclass(frozen=True, config=_CHECKED)
class Scores:
    """Means of metrics over some cases."""

    cases: Annotated[Count, Field(ge=FEWEST_CASES)]
    metrics: Metrics


@dataclass(frozen=True, config=_CHECKED)
class FoldRecord:
    """One trained fold of a configuration."""

    configuration: str
    fold: int | str
    rounds: Count | None = None
    """Rounds of the federation; ``None`` of a model that was trained without one."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the federation, by name."""
    sites: Mapping[str, SiteSummary] = field(default_factory=dict)
    """Cases, versions and promise of privacy of each site."""
    validation: Scores | None = None
    """nnU-Net's full validation of the fold; ``None`` if there is none of several cases."""
    site_validation: Mapping[str, Scores] = field(default_factory=dict)
    """The same at each site that has several validation cases."""


@dataclass(frozen=True, config=_CHECKED)
class TestResult:
    """A test of a model on cases that it was not validated on, or a comparison's."""

    __test__ = False  # for pytest, which takes a class of this name for tests
    source: str
    """Name of the folder that the numbers are from."""
    model: str
    """Model, as the comparison names it; empty of an evaluation."""
    group: str
    """Site, or all of them together."""
    external: bool | None
    """Whether the group took no part in the training; ``None`` if that is not known."""
    scores: Scores
    runs: Count = 1
    """Number of trainings that the mean is over."""


@dataclass(frozen=True, config=_CHECKED)
class OnnxRecord:
    """An ONNX file, and what it was compared with."""

    file: str
    configuration: str
    folds: tuple[int | str, ...]
    """Folds whose probabilities are averaged."""
    input_shape: tuple[int, ...]
    """Shape of one preprocessed image: channels, and size in pixels."""
    difference: Value
    """Largest difference of a probability between ONNX Runtime and PyTorch."""
    images: Count
    """Number of random images on which they were compared."""


@dataclass(frozen=True, config=_CHECKED)
class ModelCard:
    """Everything that is said of a release."""

    dataset: str
    trainer: str
    """Trainer of the folders, as ``-tr`` of nnU-Net's commands."""
    plans_name: str
    plans_hash: str
    """SHA-256 of the plans without the name of the dataset."""
    checkpoints: tuple[str, ...]
    runs_with: str
    """``nnU-Net`` alone, or what its commands need besides it."""
    declared: Mapping[str, Any]
    """Channels and labels, as in ``dataset.json``."""
    folds: tuple[FoldRecord, ...]
    tests: tuple[TestResult, ...] = ()
    bundles: tuple[str, ...] = ()
    """Folders that are MONAI bundles."""
    onnx: tuple[OnnxRecord, ...] = ()
    trained_with: Mapping[str, str] = field(default_factory=dict)
    """Versions of the packages of the training, by name."""
    released_with: Mapping[str, str] = field(default_factory=dict)
    """Versions of the packages that wrote the release, by name."""
    purpose: str | None = None
    """What the model is for; ``None`` if whoever released it has not said so."""
    licence: str | None = None
    contact: str | None = None
    format: int = FORMAT

    @property
    def configurations(self) -> tuple[str, ...]:
        """Configurations of the release."""
        return tuple(dict.fromkeys(fold.configuration for fold in self.folds))


_CARD = TypeAdapter(ModelCard)


def write_card(card: ModelCard) -> str:
    """Return the text of ``model_card.json``."""
    return _CARD.dump_json(card, indent=1, by_alias=True).decode() + "\n"


def read_card(content: bytes) -> ModelCard:
    """Read what :func:`write_card` returned, which may come from anywhere.

    Raises
    ------
    CheckpointError
        If it is damaged, of another format, or a value does not fit.
    """
    try:
        found = json.loads(content)
        version = found.get("format") if isinstance(found, dict) else None
        if type(version) is int and version != FORMAT:
            problem = format_problem(version, FORMAT, "this installation")
            raise CheckpointError(f"{CARD_FILE} has {problem}")
        card: ModelCard = _CARD.validate_json(content)
    except ValidationError as error:
        raise CheckpointError(f"{CARD_FILE} cannot be read ({first_problem(error)}).") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{CARD_FILE} is no JSON.") from error
    return card
