"""nnU-Net's files of a finished model, cut down to what inference needs.

nnU-Net's own name cases and folders: checkpoints have the whole ``dataset.json``, fingerprints a
size for each case, summaries a path. What stays is listed here; all else is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.nnunet.training.safe_checkpoint import read_checkpoint

OF_SUMMARY = ("foreground_mean", "mean", "threshold")
"""Keys of ``summary.json`` without cases; a classifier's threshold is used to predict."""
_PER_CASE = ("spacings", "shapes_after_crop")


def clean_fingerprint(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a fingerprint without what it has of each case."""
    return {key: value for key, value in content.items() if key not in _PER_CASE}


def clean_summary(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the means of a ``summary.json``."""
    return {key: content[key] for key in OF_SUMMARY if key in content}


def clean_checkpoint(path: Path, configuration: str, fold: int | str) -> dict[str, Any]:
    """Read a checkpoint without running code, and return what inference needs of it.

    Parameters
    ----------
    path
        Checkpoint of nnU-Net.
    configuration, fold
        What it should be of.

    Raises
    ------
    SettingsError
        If it cannot be read, is of another configuration, or has weights that are not finite.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.configuration != configuration:
        raise SettingsError(
            f"{path}: is of the configuration {checkpoint.configuration}, not {configuration}: put "
            "back the one that was trained there."
        )
    if not all(bool(tensor.isfinite().all()) for tensor in checkpoint.weights.values()):
        raise SettingsError(
            f"{path}: has weights that are not finite: its training diverged; release another fold."
        )
    return {
        "network_weights": checkpoint.weights,
        "trainer_name": checkpoint.trainer,
        "init_args": {"configuration": configuration, "fold": fold},
        "inference_allowed_mirroring_axes": checkpoint.mirroring_axes or None,
    }
