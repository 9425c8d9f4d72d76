"""The device to train on, and the settings of torch that depend on it."""

from __future__ import annotations

import os

import torch

from nnunetv2_federated.federation.errors import SettingsError

DEVICES = ("cuda", "cpu", "mps")


def choose_device(requested: str | None) -> str:
    """Return the device to train on, and set torch's threads as nnU-Net does.

    Parameters
    ----------
    requested
        ``cuda``, ``cpu``, ``mps``, or ``None`` for CUDA if there is a device, else the CPU.

    Raises
    ------
    SettingsError
        If the requested device is absent.
    """
    if requested not in (None, *DEVICES):
        raise SettingsError(f"-device {requested}: must be cuda, cpu or mps.")
    if requested == "cuda" and not torch.cuda.is_available():
        raise SettingsError("-device cuda: no CUDA device found; use -device cpu.")
    device = requested or ("cuda" if torch.cuda.is_available() else "cpu")
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    torch.set_num_threads(1 if device == "cuda" else threads)
    torch.backends.cudnn.benchmark = device == "cuda"
    return device


def limit_gpu_memory(gigabytes: float | None, gpu: int = 0) -> None:
    """Let this process take no more of a GPU's memory; ``None`` for no limit."""
    if gigabytes is None:
        return
    total = torch.cuda.get_device_properties(gpu).total_memory / 2**30
    torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes / total), gpu)
