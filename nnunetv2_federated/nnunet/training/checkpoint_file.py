"""One checkpoint file that a stock nnU-Net reads."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.nnunet.training.torch_file import plain, write_torch

_WEIGHTS = "network_weights"
_LFS_POINTER = b"version https://git-lfs"


def save_as_stock(save: Callable[[Any], None], filename: str, trainer_name: str) -> None:
    """Let nnU-Net write its checkpoint, then store it under another trainer's name, atomically.

    nnU-Net finds the network at inference by ``trainer_name``; renaming it is documented as fine
    when the architecture is the same. NumPy's numbers become Python's, so that trainers which read
    their checkpoints with torch's default (``weights_only=True``) can, as ``nnUNetTrainer_warmup``.
    """
    buffer = io.BytesIO()
    save(buffer)
    buffer.seek(0)
    checkpoint = torch.load(buffer, map_location="cpu", weights_only=False)  # written a line above
    write_torch(Path(filename), plain({**checkpoint, "trainer_name": trainer_name}))


def read_network_weights(path: Path) -> dict[str, Any]:
    """Read the weights of a checkpoint of nnU-Net onto the CPU, wherever they were trained.

    Raises
    ------
    KeyError
        If it was read, and has no weights of a network by name.
    Exception
        Whatever ``torch.load`` raises; see :func:`unreadable`.
    """
    # as nnU-Net reads it, which stores more than tensors
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    weights = checkpoint.get(_WEIGHTS) if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not all(map(torch.is_tensor, weights.values())):
        raise KeyError(_WEIGHTS)
    return weights


def as_file(weights: dict[str, Any]) -> io.BytesIO:
    """Return weights as a file that nnU-Net's functions read."""
    buffer = io.BytesIO()
    torch.save({_WEIGHTS: weights}, buffer)
    buffer.seek(0)
    return buffer


def unreadable(path: Path, error: Exception) -> str:
    """Say why a file that was given for a checkpoint of nnU-Net is none, and what to do.

    Parameters
    ----------
    path
        The file.
    error
        What reading it raised.
    """
    if isinstance(error, KeyError):  # it was read
        return f"has no {error}: give a checkpoint of nnU-Net, such as checkpoint_final.pth."
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
    except OSError as refused:
        return f"cannot be read ({refused.strerror}): give a checkpoint of nnU-Net."
    if start == _LFS_POINTER:
        return "a Git LFS pointer, not the weights it stands for: fetch them with git lfs pull."
    if start.lstrip().startswith(b"<"):
        return "a web page, not weights: download the file itself."
    if not start:
        return "an empty file: give a checkpoint of nnU-Net."
    return (
        f"cannot be read ({type(error).__name__}: {clean(error, 100)}): not whole, or no "
        "checkpoint of nnU-Net; copy it again."
    )
