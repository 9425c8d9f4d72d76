"""Shared memory for the batches of augmentation workers: a training waits for ever without it."""

from __future__ import annotations

import contextlib
import errno
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_federated.federation.errors import SettingsError

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # of Linux; nothing is written there by us
_MEGABYTE, _GIGABYTE = 2**20, 2**30


def batch_bytes(
    batch_size: int, patch_size: Sequence[int], channels: int, labels: LabelManager
) -> int:
    """Return the bytes of a batch: float32 images, and masks at all resolutions.

    Masks are int16, or one bool for each region. Every lower resolution has at most a quarter of
    the voxels of the one above, so that all have at most a third more than the highest.
    """
    masks = len(labels.foreground_regions) if labels.has_regions else 2
    return batch_size * math.prod(patch_size) * (4 * channels + math.ceil(masks * 4 / 3))


def queued_batches(workers: int, *, pinned: bool) -> int:
    """Return the number of batches in shared memory when the queues of one trainer are full.

    nnU-Net's ``get_dataloaders`` lets training cache ``max(6, workers // 2)`` batches and
    validation ``max(3, workers // 4)``. ``NonDetMultiThreadedAugmenter`` caches as many between
    the processes, with one on the way. On a CPU it then caches as many in this process, with one
    in use; for a GPU it copies those into pinned memory.

    Parameters
    ----------
    workers
        Number of processes that augment; 0 for none.
    pinned
        Whether batches are copied into pinned memory.
    """
    if workers == 0:
        return 0
    cached = (max(6, workers // 2), max(3, workers // 4))
    return sum(number + 1 if pinned else 2 * (number + 1) for number in cached)


def queued_patients(workers: int, *, pinned: bool) -> int:
    """Return the number of batches in shared memory when a private trainer's queues are full.

    :class:`.PatientWorkers` makes one batch of each patient. One waits at each worker and one is
    made; on a CPU ``max(3, workers // 2)`` more are cached in this process, with one on the way and
    one in use. Validation is nnU-Net's, as in :func:`queued_batches`.

    Parameters
    ----------
    workers
        Number of processes that augment; 0 for none.
    pinned
        Whether batches are copied into pinned memory.
    """
    if workers == 0:
        return 0
    training = 2 * workers + (1 if pinned else max(3, workers // 2) + 2)
    validation = max(3, workers // 4) + 1
    return training + (validation if pinned else 2 * validation)


def check_shared_memory(
    batch: int, *, pinned: bool, trainers: int = 1, queued: Callable[..., int] = queued_batches
) -> str:
    """Make sure that the queues fit into shared memory; say what is free and what is needed.

    Parameters
    ----------
    batch
        Bytes of a batch.
    pinned
        Whether batches are copied into pinned memory.
    trainers
        Number of trainers that have their queues at the same time.
    queued
        Number of batches in the queues of a trainer, of its workers and ``pinned``.

    Raises
    ------
    SettingsError
        If the queues do not fit: the training would wait for ever for a batch.
    """
    workers = _workers()
    if workers == 0:
        return "no augmentation workers: nnUNet_n_proc_DA=0"
    if not SHARED_MEMORY.is_dir():
        return f"no {SHARED_MEMORY} on this system"
    free = shutil.disk_usage(SHARED_MEMORY).free
    needed = trainers * batch * queued(workers, pinned=pinned)
    seen = (
        f"{_megabytes(free)} free in {SHARED_MEMORY}, {_megabytes(needed)} needed by {workers} "
        "augmentation workers"
    )
    if needed > free:
        raise SettingsError(
            f"{seen}: set nnUNet_n_proc_DA=0 to train without workers, or give a container more "
            f"(docker run --shm-size={math.ceil(needed / _GIGABYTE)}g)."
        )
    return seen


@contextlib.contextmanager
def naming_shared_memory() -> Iterator[None]:
    """Raise ``OSError`` in place of torch's ``RuntimeError`` for shared memory that is full.

    Predictions pass through shared memory to the processes that write them, with or without
    augmentation workers.
    """
    try:
        yield
    except RuntimeError as error:
        if "shared memory" not in str(error):
            raise
        what = "No space left in shared memory (docker run --shm-size gives more)"
        raise OSError(errno.ENOSPC, what, str(SHARED_MEMORY)) from error


def _workers() -> int:
    try:
        return max(0, int(get_allowed_n_proc_DA()))
    except ValueError as error:
        raise SettingsError(
            f"nnUNet_n_proc_DA: {error}; give a whole number, 0 or more."
        ) from error


def _megabytes(number: int) -> str:
    return f"{number / _MEGABYTE:.1f} MB"
