"""A trained model as it travels to be evaluated: JSON, and one vector for each fold. No pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.payload import STRICT, Fold, Hash, Name, Payload

MOST_FOLDS = 20
"""Largest number of folds of an ensemble."""
_MEGABYTE = 2**20
_OF_DATASET = (
    *("channel_names", "modality", "labels", "regions_class_order", "classes"),
    *("file_ending", "overwrite_image_reader_writer"),
)
"""What prediction needs of ``dataset.json``; its lists of cases stay where they are."""

Label = Annotated[int, Field(ge=0, le=10**6)]


@dataclass(frozen=True, config=STRICT)
class Postprocessing:
    """One step of nnU-Net's postprocessing, by name."""

    function: Literal["remove_all_but_largest_component_from_segmentation"]
    """Of ``nnunetv2.postprocessing.remove_connected_components``."""
    labels: Annotated[
        list[Label | Annotated[list[Label], Field(max_length=1000)]],
        Field(min_length=1, max_length=1000),
    ]
    """Labels and regions whose union keeps only its largest component."""
    background: Label
    """Label of what is removed."""


@dataclass(frozen=True, config=STRICT)
class ModelDescription(Payload):
    """All of a trained model but its weights, of which it has the hashes."""

    most_bytes: ClassVar[int] = 16 * _MEGABYTE

    plans: dict[str, Any]
    """nnU-Net's plans without ``dataset_name``."""
    dataset_json: dict[str, Any]
    """Channels, labels or classes, and file ending."""
    configuration: Name
    trainer: Name
    """Trainer whose network it is."""
    folds: Annotated[list[Fold], Field(min_length=1, max_length=MOST_FOLDS)]
    """Folds whose outputs are averaged."""
    weights: Annotated[list[Hash], Field(min_length=1, max_length=MOST_FOLDS)]
    """SHA-256 of each fold's vector, see :func:`hash_vector`."""
    values: Annotated[int, Field(ge=1, le=10**10)]
    """Length of each vector."""
    network_hash: Hash
    """Hash of the names, shapes and types of the network's tensors."""
    mirroring_axes: Annotated[list[Annotated[int, Field(ge=0, le=2)]], Field(max_length=3)]
    """Axes along which nnU-Net mirrors at inference."""
    postprocessing: Annotated[list[Postprocessing], Field(max_length=1000)]
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Of a classifier of two classes: probability of class 1 from which a case is positive."""

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.folds):
            raise ValueError(f"{len(self.folds)} folds, but {len(self.weights)} vectors")

    @property
    def sha256(self) -> str:
        """SHA-256 of the description, and so of the whole model."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def classifies(self) -> bool:
        """Whether the model gives whole images a class, in place of segmenting them."""
        return "classes" in self.dataset_json


def of_dataset(dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """Return what prediction needs of a ``dataset.json``: nothing that names a case."""
    return {key: dataset_json[key] for key in _OF_DATASET if key in dataset_json}


def hash_vector(vector: Vector) -> str:
    """Return the SHA-256 of a vector's values, as little-endian 32-bit numbers."""
    return hashlib.sha256(vector.astype("<f4", copy=False).tobytes()).hexdigest()
