"""nnU-Net's augmentation of drawn patients, in this process or in its worker processes.

With workers a step's patients are shared out in turn (round robin) and come back in the order in
which they were drawn. nnU-Net's usual augmenter hands on whatever is ready first, which prefers
small images.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import (
    NonDetMultiThreadedAugmenter,
)
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter

from nnunetv2_federated.nnunet.privacy.poisson import PoissonPatients
from nnunetv2_federated.nnunet.privacy.private_training import PrivateTraining
from nnunetv2_federated.nnunet.privacy.requirements import check_loader, check_transform

_QUEUED = 1
"""Batches that wait at each worker."""


def private_augmenter(
    augmenter: Any,  # noqa: ANN401  # batchgenerators'
    privacy: PrivateTraining,
) -> SingleThreadedAugmenter | MultiThreadedAugmenter:
    """Return an augmenter of steps of patients, in place of a trainer's own for training.

    Parameters
    ----------
    augmenter
        What the trainer's ``get_dataloaders`` returned. Its workers, if any, are stopped.
    privacy
        Patients, and how they are drawn.

    Raises
    ------
    SettingsError
        If the trainer does not draw its cases as nnU-Net does, or not those of the patients.
    """
    loader = getattr(augmenter, "data_loader", None) or getattr(augmenter, "generator", None)
    check_transform(augmenter)
    check_loader(loader, privacy)
    workers = 0
    if isinstance(augmenter, NonDetMultiThreadedAugmenter | MultiThreadedAugmenter):
        augmenter._finish()  # as nnU-Net stops them
        workers = augmenter.num_processes
    # the workers agree on who is drawn by a generator that each of them has
    shared = random.Random(os.urandom(64)) if workers else None  # noqa: S311  # of the system
    patients = PoissonPatients(
        loader, privacy.patients, privacy.probability, privacy.patches, shared
    )
    patients.patches_of(next(iter(privacy.patients.values()))[0])  # refused before the training
    if not workers:
        return SingleThreadedAugmenter(patients, None)
    return PatientWorkers(patients, workers, pin_memory=augmenter.pin_memory)


class PatientWorkers(MultiThreadedAugmenter):
    """Worker processes that make the batches of drawn patients, one of each in turn.

    Parameters
    ----------
    patients
        Draws patients and makes their batches. Its generator is copied to every worker.
    workers
        Number of processes.
    pin_memory
        Whether batches are copied into pinned memory, for a GPU.
    """

    def __init__(self, patients: PoissonPatients, workers: int, *, pin_memory: bool) -> None:
        super().__init__(
            Share(patients, workers),
            None,
            workers,
            num_cached_per_queue=_QUEUED,
            pin_memory=pin_memory,
            wait_time=0.002,
        )
        self._present: Iterator[dict[str, Any]] = iter(())

    def __next__(self) -> dict[str, Iterator[dict[str, Any]]]:
        """Return ``{"patients": batches}`` of the next step, as :class:`.PoissonPatients` does."""
        for _ in self._present:  # a step that was not taken, because the round's time was over
            pass
        self._present = self._batches()
        return {"patients": self._present}

    def _batches(self) -> Iterator[dict[str, Any]]:
        while batch := super().__next__():
            yield batch


class Share:
    """What one worker makes of the steps that all workers draw alike: every ``workers``-th batch.

    After the batches of a step comes an empty one.
    """

    def __init__(self, patients: PoissonPatients, workers: int) -> None:
        self._patients = patients
        self._workers = workers
        self._worker = 0
        self._batches: Iterator[dict[str, Any]] | None = None

    def set_thread_id(self, thread_id: int) -> None:
        """Say which of the workers this is; batchgenerators does so in each process."""
        self._worker = thread_id

    def __next__(self) -> dict[str, Any]:
        """Return the next batch of this worker."""
        self._batches = self._batches or self._make()
        return next(self._batches)

    def _make(self) -> Iterator[dict[str, Any]]:
        turn = 0
        while True:
            for case in (*self._patients.draw(), None):
                if turn % self._workers == self._worker:
                    yield {} if case is None else self._patients.patches_of(case)
                turn += 1
