"""Checkpoint files of nnU-Net: written so that a stock nnU-Net reads them, and read from it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from torch import nn

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.nnunet.training.torch_file import plain, write_torch

_WEIGHTS = "network_weights"
_LFS_POINTER = b"version https://git-lfs"


def save_as_stock(save: Callable[[Any], None], filename: str, trainer_name: str) -> None:
    """Write nnU-Net's checkpoint under another trainer's name, atomically.

    nnU-Net finds the network at inference by ``trainer_name``; renaming it is documented as fine
    when the architecture is the same. NumPy's numbers become Python's, so that trainers such as
    ``nnUNetTrainer_warmup`` can read their checkpoints with torch's default ``weights_only=True``.

    Parameters
    ----------
    save
        nnU-Net's ``save_checkpoint``, which takes a file.
    filename
        Checkpoint to write.
    trainer_name
        Name that the checkpoint has for its trainer.
    """
    buffer = io.BytesIO()
    save(buffer)
    buffer.seek(0)
    checkpoint = torch.load(buffer, map_location="cpu", weights_only=False)  # just written
    write_torch(Path(filename), plain({**checkpoint, "trainer_name": trainer_name}))


def read_network_weights(path: Path) -> dict[str, Any]:
    """Read the weights of a checkpoint of nnU-Net onto the CPU, wherever they were trained.

    Raises
    ------
    KeyError
        If the file was read, and has no weights of a network by name.
    Exception
        Whatever ``torch.load`` raises; :func:`unreadable` says it in words.
    """
    # as nnU-Net reads it: checkpoints hold more than tensors
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    weights = checkpoint.get(_WEIGHTS) if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not all(map(torch.is_tensor, weights.values())):
        raise KeyError(_WEIGHTS)
    return weights


def load_pretrained(network: nn.Module, filename: str) -> None:
    """Load the weights of an nnU-Net checkpoint into a network, as nnU-Net does.

    Raises
    ------
    SettingsError
        If the file cannot be read, is no checkpoint, or has weights of another network.
    """
    path = Path(filename)
    try:
        weights = read_network_weights(path)
        load_pretrained_weights(network, _as_file(weights))
    except AssertionError as error:  # nnU-Net's text ends with all numbers of a tensor
        what = clean(str(error).partition("; your network")[0])
        raise SettingsError(
            f"-pretrained_weights {filename}: of another network than this configuration's "
            f"({what}); give weights of the same plans and configuration."
        ) from error
    except Exception as error:  # torch.load raises a dozen unrelated types
        raise SettingsError(f"-pretrained_weights {filename}: {unreadable(path, error)}") from error


def _as_file(weights: dict[str, Any]) -> io.BytesIO:
    """Return weights as a checkpoint that nnU-Net's functions read."""
    buffer = io.BytesIO()
    torch.save({_WEIGHTS: weights}, buffer)
    buffer.seek(0)
    return buffer


def unreadable(path: Path, error: Exception) -> str:
    """Say why a file is no checkpoint of nnU-Net, and what to do.

    Parameters
    ----------
    path
        File that was read.
    error
        Error that reading it raised.
    """
    if isinstance(error, KeyError):  # of read_network_weights
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
