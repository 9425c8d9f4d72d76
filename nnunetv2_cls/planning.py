"""A configuration for classification, beside those nnU-Net planned."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed

from nnunetv2_cls.checks import check_dimensions
from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.labels import find_name, labels_to_plan, read_json, write_json, write_labels
from nnunetv2_cls.network import check_model, check_norm
from nnunetv2_cls.splits import SPLITS_FILE, patients_of, splits_to_plan

logger = logging.getLogger(__name__)

_BLOCKS_PER_STAGE = (1, 3, 4, 6, 6, 6, 6, 6, 6, 6)
"""Of nnU-Net's residual encoder planners."""
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


@dataclass(frozen=True)
class ClsPlan:
    """What to add to the plans."""

    parent: str = "2d"
    """Configuration whose preprocessed data is shared."""
    size: tuple[int, ...] | None = None
    """Of an image, (y, x) or (z, y, x) in voxels; ``None`` for the parent's median image size."""
    batch_size: int = 32
    model: str = "resnet18"
    """timm model, for a 2D parent; a 3D parent gets nnU-Net's residual encoder."""
    norm: str = "batch"

    @property
    def name(self) -> str:
        """``2d_cls`` for ``2d``."""
        return f"{self.parent}_cls"


def configuration(plans: Mapping[str, Any], wanted: ClsPlan) -> dict[str, Any]:
    """Return the configuration to add, inheriting from its parent.

    Raises
    ------
    ClsError
        If the parent is not planned, or a value is not allowed.
    """
    parent = plans["configurations"].get(wanted.parent)
    if parent is None or "patch_size" not in parent:
        known = [c for c, v in plans["configurations"].items() if "patch_size" in v]
        raise ClsError(f"-c {wanted.parent}: the plans have {', '.join(known)}.")
    median = parent["median_image_size_in_voxels"]
    size = [round(n) for n in (wanted.size or median)]
    if len(size) != len(parent["patch_size"]) or min(size) < 8:
        raise ClsError(
            f"--size {' '.join(map(str, size))}: give {len(parent['patch_size'])} numbers of at "
            f"least 8 for {wanted.parent}."
        )
    if wanted.batch_size < 2:
        raise ClsError(f"--batch-size {wanted.batch_size}: must be at least 2.")
    return {
        "inherits_from": wanted.parent,
        "patch_size": size,
        "batch_size": wanted.batch_size,
        "architecture": _timm(wanted) if len(size) == 2 else _encoder(parent),
    }


def _timm(wanted: ClsPlan) -> dict[str, Any]:
    check_model(wanted.model)
    check_norm(wanted.norm)
    return {
        "network_class_name": "nnunetv2_cls.network.timm_classifier",
        "arch_kwargs": {"model_name": wanted.model, "norm": wanted.norm},
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


def add_configuration(dataset: str, plans_name: str, wanted: ClsPlan) -> tuple[Path, str]:
    """Add the configuration to a dataset's plans file, with its labels and folds.

    Labels and classes are taken from ``nnUNet_raw`` where it has them; folds are drawn by patient
    and class where there are none.

    Parameters
    ----------
    dataset
        Id or name.
    plans_name
        As ``-p`` of ``nnUNetv2_train``.
    wanted
        What to add; a configuration of the same name is replaced.

    Returns
    -------
    tuple
        The plans file, and what was done about folds, for the user; empty if nothing.

    Raises
    ------
    ClsError
        If the dataset is not planned, has no usable labels or folds, or volumes for a 2D
        configuration, or a value is not allowed.
    """
    folder = preprocessed_folder(dataset)
    plans = load_plans(folder, plans_name)
    added = configuration(plans, wanted)
    check_dimensions(plans, wanted.parent)
    labels = labels_to_plan(folder.name)
    if absent := labels.absent:
        logger.warning(
            "no case of %s is of class %s: it is learned from other sites only, if any has it",
            folder.name,
            ", ".join(absent),
        )
    splits, said = splits_to_plan(folder, labels.names, patients_of(folder.name))
    plans["configurations"][wanted.name] = added
    path = folder / f"{plans_name}.json"
    write_labels(folder.name, labels)
    if splits is not None:
        write_json(folder / SPLITS_FILE, splits)
    write_json(path, plans)
    return path, said


def load_plans(folder: Path, plans_name: str) -> dict[str, Any]:
    """Load the plans of a preprocessed dataset.

    Raises
    ------
    ClsError
        If it was not planned with these.
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
    """Find a preprocessed dataset.

    Raises
    ------
    ClsError
        If there is none, or ``nnUNet_preprocessed`` is not set.
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
    """Put a trainer's own choices into a copy of the plans.

    Raises
    ------
    ClsError
        If there is no such configuration, or it is none of a classification.
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


def size_of(numbers: Sequence[int] | None, dimensions: int) -> tuple[int, ...] | None:
    """Read ``--size``: one number for all axes, or one for each."""
    if numbers is None:
        return None
    return tuple(numbers) * dimensions if len(numbers) == 1 else tuple(numbers)
