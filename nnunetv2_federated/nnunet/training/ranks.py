"""The processes that train a site together, each on a GPU of its own, as one of them sees it.

They are nnU-Net's: its trainer divides the batch and averages gradients as soon as there is a group
of ``torch.distributed``. Without one this process is alone, rank 0 of 1, and nothing here waits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed, nn

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.messages import Validation

T = TypeVar("T")


def _grouped() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def this_rank() -> int:
    """Return the number of this process in its group; 0 if it is alone."""
    return distributed.get_rank() if _grouped() else 0


def num_ranks() -> int:
    """Return the number of processes in the group; 1 if this one is alone."""
    return distributed.get_world_size() if _grouped() else 1


def gather(value: T) -> list[T]:
    """Return what every rank gives, in the order of the ranks; all must call it."""
    if not _grouped():
        return [value]
    values: list[Any] = [None] * num_ranks()
    distributed.all_gather_object(values, value)
    return values


def of_first(value: T) -> T:
    """Return what rank 0 gives; all must call it.

    What depends on the clock or the disk is decided once: ranks that decide differently would wait
    for each other for ever.
    """
    if not _grouped():
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def seed_of_rank(seed: int, rank: int) -> int:
    """Return the seed of a rank's random numbers: rank 0 has the site's, and each another."""
    if rank == 0:
        return seed
    return int(np.random.SeedSequence((seed, rank)).generate_state(1)[0])


def over_ranks(parts: Sequence[Validation]) -> Validation:
    """Return the validation of whole batches, of which each rank has seen a part.

    Voxels are added up. The loss is the mean over ranks, as nnU-Net's, and an iteration of all
    ranks is one.
    """
    if len(parts) == 1:
        return parts[0]
    losses = [np.nan if part.loss is None else part.loss for part in parts]
    tp, fp, fn = (
        np.sum([getattr(part, name) for part in parts], axis=0).tolist()
        for name in ("tp", "fp", "fn")
    )
    return Validation.of(parts[0].iterations, float(np.mean(losses)), tp, fp, fn)


@contextlib.contextmanager
def in_one_process(trainer: Any) -> Iterator[None]:  # noqa: ANN401  # any trainer of nnU-Net
    """Let a trainer of a group work without the others, within."""
    network, grouped = trainer.network, trainer.is_ddp
    if isinstance(network, nn.parallel.DistributedDataParallel):
        trainer.network = network.module
    trainer.is_ddp = False
    try:
        yield
    finally:
        trainer.network, trainer.is_ddp = network, grouped


def check_gpus(num_gpus: int, device: str) -> None:
    """Check that this machine has the GPUs.

    Raises
    ------
    SettingsError
        If more than one is wanted and there are not so many, or of another device.
    """
    if num_gpus == 1:
        return
    if device != "cuda":
        raise SettingsError(
            f"-num_gpus {num_gpus} with -device {device}: several GPUs are for -device cuda only, "
            "as in nnU-Net; leave -num_gpus out."
        )
    found = torch.cuda.device_count()
    if num_gpus > found:
        raise SettingsError(
            f"-num_gpus {num_gpus}: {found} can be seen here (CUDA_VISIBLE_DEVICES may hide some); "
            f"give at most {found}."
        )


def check_divisible(num_gpus: int, *, private: bool, segmentation: bool) -> None:
    """Check that a training is of a kind that can be divided over GPUs.

    Parameters
    ----------
    num_gpus
        Number of GPUs.
    private
        Whether it is differentially private.
    segmentation
        Whether its trainer segments, and does not classify.

    Raises
    ------
    SettingsError
        If it cannot, naming why.
    """
    if num_gpus > 1 and private:
        raise SettingsError(
            f"-num_gpus {num_gpus} with differential privacy: patients are drawn, clipped and "
            "given noise in one process; leave -num_gpus out."
        )
    if num_gpus > 1 and not segmentation:
        raise SettingsError(
            f"-num_gpus {num_gpus} with a classifier: its epochs go through whole datasets, which "
            "are not divided over GPUs; leave -num_gpus out."
        )


def check_batch(num_gpus: int, batch_size: int) -> None:
    """Check that each GPU gets a part of the batch.

    Raises
    ------
    SettingsError
        If the batch is too small.
    """
    if num_gpus > batch_size:
        raise SettingsError(
            f"-num_gpus {num_gpus} with a batch size of {batch_size}: each GPU needs a part of the "
            f"batch; give at most -num_gpus {batch_size}, or a larger --batch-size."
        )
