"""Checkpoints of nnU-Net from anywhere, read without running code that is in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.names import is_plain_name
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.nnunet.training.checkpoint_file import unreadable

_SCALAR = np.float32(0).__reduce__()[0]
"""NumPy's function that makes a number from bytes; nnU-Net's logs hold such numbers."""
_NUMBERS: list[Any] = [
    np.dtype,
    *(type(np.dtype(name)) for name in ("f2", "f4", "f8", "i4", "i8", "u1", "?")),
    *((_SCALAR, f"numpy.{package}.multiarray.scalar") for package in ("core", "_core")),
]
"""What a checkpoint may hold beside tensors and plain values."""
_AXES: tuple[list[int], ...] = ([], [0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2])


@dataclass(frozen=True)
class Checkpoint:
    """What prediction needs of a checkpoint."""

    weights: dict[str, torch.Tensor]
    """``state_dict`` of the network."""
    trainer: str
    configuration: str
    mirroring_axes: tuple[int, ...]
    """Axes along which nnU-Net mirrors at inference; none if empty."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of nnU-Net; only tensors, numbers and plain values are accepted.

    Parameters
    ----------
    path
        A ``checkpoint_final.pth`` or one like it, from any source.

    Raises
    ------
    SettingsError
        If it cannot be read, names code, or is no checkpoint of nnU-Net's.
    """
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises a dozen unrelated types
        named = _foreign_code(path)
        if named:
            raise SettingsError(
                f"{path}: names code, {clean(', '.join(named), 100)}: weights are tensors and "
                "numbers; give a checkpoint that nnU-Net wrote."
            ) from error
        raise SettingsError(f"{path}: {unreadable(path, error)}") from error
    return _checked(path, content)


def _foreign_code(path: Path) -> list[str]:
    """Return the names of code in a checkpoint that are not allowed, without running any."""
    known = {"numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}
    try:
        return sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - known)
    except Exception:  # noqa: BLE001  # of no form of torch's: the reader has said why
        return []


def _checked(path: Path, content: object) -> Checkpoint:
    fields = content if isinstance(content, dict) else {}
    weights, trainer = fields.get("network_weights"), fields.get("trainer_name")
    arguments = fields.get("init_args")
    configuration = arguments.get("configuration") if isinstance(arguments, dict) else None
    axes = fields.get("inference_allowed_mirroring_axes") or ()
    if not isinstance(weights, dict) or not all(map(torch.is_tensor, weights.values())):
        raise SettingsError(f"{path}: {unreadable(path, KeyError('network_weights'))}")
    if not is_plain_name(trainer) or not is_plain_name(configuration):
        raise SettingsError(
            f"{path}: names no trainer and configuration: give a checkpoint of nnU-Net v2."
        )
    if not isinstance(axes, tuple | list) or sorted(axes) not in _AXES:
        raise SettingsError(f"{path}: has no mirroring axes of nnU-Net's: {clean(axes, 40)}.")
    return Checkpoint(weights, str(trainer), str(configuration), tuple(axes))
