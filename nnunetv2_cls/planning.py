"""Add a configuration for classification to the plans that nnU-Net made of a dataset."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed

from nnunetv2_cls import defaults
from nnunetv2_cls.checks import check_dimensions
from nnunetv2_cls.defaults import Norm
from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.labels import find_name, labels_to_plan, read_json, write_json, write_labels
from nnunetv2_cls.network import check_model, check_norm
from nnunetv2_cls.splits import SPLITS_FILE, patients_of, splits_to_plan

logger = logging.getLogger(__name__)

_BLOCKS_PER_STAGE = (1, 3, 4, 6, 6, 6, 6, 6, 6, 6)
"""Blocks of each stage in nnU-Net's residual encoder planners."""
_ENCODER_KEYS = (
    "n_stages",
    "features_per_stage",
    "conv_op",
    "kernel_sizes",
    "strides",
    "conv_bias",
    "norm_op",
    "norm_op_kwargs",
    "dropout_op",
    "dropout_op_kwargs",
    "nonlin",
    "nonlin_kwargs",
)
"""Arguments of the planned network that a residual encoder takes, too."""


@dataclass(frozen=True)
class NewConfiguration:
    """Configuration for classification, to be added to plans."""

    parent: str = defaults.PARENT
    """Configuration from which it inherits, and whose preprocessed data it shares."""
    size: tuple[int, ...] | None = None
    """Size of an image, (y, x) or (z, y, x) in voxels; ``None`` for the parent's median size."""
    batch_size: int = defaults.BATCH_SIZE
    model: str = defaults.MODEL
    """timm model, for a 2D parent; a 3D parent gets nnU-Net's residual encoder."""
    norm: Norm = defaults.NORM

    @property
    def name(self) -> str:
        """Name of the configuration, ``2d_cls`` for the parent ``2d``."""
        return f"{self.parent}_cls"


@dataclass(frozen=True)
class PlannedConfiguration:
    """Configuration for classification that was added to the plans of a dataset."""

    dataset: str
    """Name of the dataset."""
    name: str
    """Name of the configuration, such as ``2d_cls``."""
    plans_file: Path
    folds: str
    """What was done about the folds, in words; empty if they were there and complete."""


def plan(
    dataset: str | int,
    *,
    parent: str = defaults.PARENT,
    plans: str = defaults.PLANS,
    size: int | Sequence[int] | None = None,
    batch_size: int = defaults.BATCH_SIZE,
    model: str = defaults.MODEL,
    norm: Norm = defaults.NORM,
) -> PlannedConfiguration:
    """Add a configuration for classification to the plans of a dataset, as ``nnUNetv2_cls_plan``.

    ``nnUNetv2_plan_and_preprocess`` must have planned and preprocessed the dataset. Labels and
    classes are taken from ``nnUNet_raw`` where it has them. Folds are drawn by patient and class
    where there are none.

    Parameters
    ----------
    dataset
        Id or name of the dataset.
    parent
        Configuration to inherit from, such as ``2d`` or ``3d_fullres``. The preprocessed data is
        shared with it, and the new configuration is named after it: ``2d_cls``. One of that name
        is replaced.
    plans
        Name of the plans.
    size
        Size of an image in voxels: one number for all axes, or one for each, (y, x) or (z, y, x).
        ``None`` for the median size of the dataset's images.
    batch_size
        Number of images in a batch.
    model
        Name of a timm model, for a 2D configuration. One of 3D takes nnU-Net's residual encoder.
    norm
        ``batch`` keeps the model's normalisation; ``group`` turns every BatchNorm into a GroupNorm.

    Returns
    -------
    PlannedConfiguration
        Name of the configuration, and the plans file that holds it.

    Raises
    ------
    ClsError
        If the dataset is not planned, has no usable labels or folds, or has volumes though the
        configuration is 2D, or a value is not allowed.

    Examples
    --------
    >>> from nnunetv2_cls import plan
    >>> plan(501, model="resnet50", size=224).name  # doctest: +SKIP
    '2d_cls'
    """
    folder = preprocessed_folder(str(dataset))
    content = load_plans(folder, plans)
    dimensions = 2 if parent.startswith("2d") else 3
    new = NewConfiguration(parent, size_of(size, dimensions), batch_size, model, norm)
    added = configuration(content, new)
    check_dimensions(content, parent)
    labels = labels_to_plan(folder.name)
    if absent := labels.absent:
        logger.warning(
            "no case of %s is of class %s: it is learned from other sites only, if any has it",
            folder.name,
            ", ".join(absent),
        )
    splits, folds = splits_to_plan(folder, labels.names, patients_of(folder.name))
    content["configurations"][new.name] = added
    path = folder / f"{plans}.json"
    write_labels(folder.name, labels)
    if splits is not None:
        write_json(folder / SPLITS_FILE, splits)
    write_json(path, content)
    return PlannedConfiguration(folder.name, new.name, path, folds)


def size_of(size: int | Sequence[int] | None, dimensions: int) -> tuple[int, ...] | None:
    """Return the size of an image by axis, from one number for all axes or one for each."""
    if size is None:
        return None
    numbers = (size,) if isinstance(size, int) else tuple(size)
    return numbers * dimensions if len(numbers) == 1 else numbers


def configuration(plans: Mapping[str, Any], new: NewConfiguration) -> dict[str, Any]:
    """Return the content of a new configuration in the plans file.

    Raises
    ------
    ClsError
        If the parent is not planned, or a value is not allowed.
    """
    parent = plans["configurations"].get(new.parent)
    if parent is None or "patch_size" not in parent:
        known = [c for c, v in plans["configurations"].items() if "patch_size" in v]
        raise ClsError(f"-c {new.parent}: the plans have {', '.join(known)}.")
    size = _image_size(parent, new)
    if new.batch_size < 2:
        raise ClsError(f"--batch-size {new.batch_size}: must be at least 2.")
    return {
        "inherits_from": new.parent,
        "patch_size": size,
        "batch_size": new.batch_size,
        "architecture": _timm(new) if len(size) == 2 else _encoder(parent),
    }


def _image_size(parent: Mapping[str, Any], new: NewConfiguration) -> list[int]:
    """Return the size of an image, which is the chosen one or the parent's median size."""
    size = [round(n) for n in (new.size or parent["median_image_size_in_voxels"])]
    dimensions = len(parent["patch_size"])
    if len(size) != dimensions or min(size) < 8:
        raise ClsError(
            f"--size {' '.join(map(str, size))}: give {dimensions} numbers of at least 8 for "
            f"{new.parent}."
        )
    return size


def _timm(new: NewConfiguration) -> dict[str, Any]:
    check_model(new.model)
    check_norm(new.norm)
    return {
        "network_class_name": "nnunetv2_cls.network.timm_classifier",
        "arch_kwargs": {"model_name": new.model, "norm": new.norm},
        "_kw_requires_import": [],
    }


def _encoder(parent: Mapping[str, Any]) -> dict[str, Any]:
    planned = parent["architecture"]["arch_kwargs"]
    kwargs = {key: planned[key] for key in _ENCODER_KEYS if key in planned}
    kwargs["n_blocks_per_stage"] = planned.get(
        "n_blocks_per_stage", _BLOCKS_PER_STAGE[: planned["n_stages"]]
    )
    return {
        "network_class_name": "nnunetv2_cls.network.ResidualEncoderClassifier",
        "arch_kwargs": kwargs,
        "_kw_requires_import": [
            key for key in ("conv_op", "norm_op", "dropout_op", "nonlin") if key in kwargs
        ],
    }


def load_plans(folder: Path, plans_name: str) -> dict[str, Any]:
    """Load the plans of a preprocessed dataset.

    Raises
    ------
    ClsError
        If the dataset has no plans of this name, or the file is damaged.
    """
    path = folder / f"{plans_name}.json"
    if not path.is_file():
        raise ClsError(
            f"{folder.name} has no plans {plans_name}: run nnUNetv2_plan_and_preprocess first, or "
            "name its plans with -p."
        )
    plans: dict[str, Any] = read_json(path)
    configurations = plans.get("configurations") if isinstance(plans, dict) else None
    if not isinstance(configurations, dict):
        raise ClsError(f"{path} is no plans file of nnU-Net: restore it, or plan again.")
    return plans


def preprocessed_folder(dataset: str) -> Path:
    """Return the folder of a preprocessed dataset, given by id or name.

    Raises
    ------
    ClsError
        If there is no such dataset, or ``nnUNet_preprocessed`` is not set.
    """
    if not nnUNet_preprocessed.is_set():
        raise ClsError(
            "nnUNet_preprocessed is not set: export nnUNet_preprocessed=/path/to/folder "
            "(nnU-Net's documentation/setting_up_paths.md)."
        )
    name = find_name(dataset)
    folder = Path(nnUNet_preprocessed.require()) / name
    if not (folder / "dataset.json").is_file():
        raise ClsError(
            f"{name} is not planned: run nnUNetv2_plan_and_preprocess -d {dataset} -c 2d first."
        )
    return folder


def adapted_plans(
    plans: dict[str, Any], configuration: str, model_name: str | None, batch_size: int | None
) -> dict[str, Any]:
    """Return a copy of plans with the model and the batch size of a trainer that sets its own.

    Parameters
    ----------
    plans
        Content of the plans file.
    configuration
        Configuration to change, such as ``2d_cls``.
    model_name
        timm model; ``None`` for that of the plans.
    batch_size
        Number of images in a batch; ``None`` for that of the plans.

    Raises
    ------
    ClsError
        If the plans have no such configuration, or it segments, or takes no timm model.
    """
    if configuration not in plans["configurations"]:
        raise ClsError(
            f"-c {configuration}: the plans have {', '.join(plans['configurations'])}; add one "
            f"with nnUNetv2_cls_plan {plans['dataset_name']}."
        )
    content = plans["configurations"][configuration]
    network = content.get("architecture", {}).get("network_class_name", "")
    if not network.startswith("nnunetv2_cls."):
        raise ClsError(
            f"configuration {configuration} segments: a classifier needs one such as 2d_cls, made "
            f"by nnUNetv2_cls_plan {plans['dataset_name']}."
        )
    adapted = deepcopy(plans)
    content = adapted["configurations"][configuration]
    if model_name is not None:
        if not network.endswith(".timm_classifier"):
            raise ClsError(
                f"configuration {configuration} has the network {network}: this trainer sets the "
                f"timm model {model_name}; use nnUNetTrainerCls."
            )
        content["architecture"]["arch_kwargs"]["model_name"] = model_name
    if batch_size is not None:
        content["batch_size"] = batch_size
    return adapted
