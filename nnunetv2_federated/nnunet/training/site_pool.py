"""The trainers that a process keeps in memory, at most a few, whatever the number of sites."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Protocol

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.messages import (
    FullValidation,
    PersonalReport,
    SiteDescription,
    TrainReport,
    TrainTask,
    Validation,
)
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.nnunet.privacy.site_privacy import Budget
from nnunetv2_federated.nnunet.training.ranked_site import RankedSite
from nnunetv2_federated.nnunet.training.site import Site

DEFAULT_RESIDENT = 4
"""Trainers kept in memory unless ``--resident-trainers`` says otherwise."""


class WorkingSite(Protocol):
    """A site with its trainer in memory: :class:`.Site`, or :class:`.RankedSite` on more GPUs."""

    run: Run
    folder: Path
    interrupted: bool
    observer: Observer

    @property
    def lrs(self) -> tuple[float, ...]:
        """Learning rate of each round."""

    @property
    def val_iterations(self) -> int | None:
        """Validation iterations of an epoch; ``None`` if it goes through all cases."""

    def describe(self) -> SiteDescription:
        """Return what the server must know of the site before the first round."""

    def train(self, task: TrainTask, weights: Vector) -> tuple[Vector, TrainReport]:
        """Train one round, and save the site's state."""

    def evaluate(self, iterations: int, weights: Vector) -> Validation:
        """Validate global weights on patches."""

    def validate_fully(self, weights: Vector) -> FullValidation:
        """Run nnU-Net's full validation of global weights."""

    def personalise(self, weights: Vector) -> PersonalReport:
        """Make the site's personal model of the final global weights."""

    @property
    def personal_folder(self) -> Path:
        """nnU-Net's result folder of the fold of the personal model."""

    def close(self) -> None:
        """Stop its processes."""


class SitePool:
    """Keeps the trainers of the sites used last in memory; the others are on disk only.

    Parameters
    ----------
    observer
        Receives the progress of the sites.
    budget
        What the hospital allows itself of differential privacy's epsilon; ``None`` for no limit.
    max_gpu_gb
        Memory that is taken of each of several GPUs at most; ``None`` for all.
    """

    def __init__(
        self,
        observer: Observer | None = None,
        budget: Budget | None = None,
        max_gpu_gb: float | None = None,
    ) -> None:
        self._observer = observer or Observer()
        self._budget = budget or Budget()
        self._max_gpu_gb = max_gpu_gb
        self._resident: OrderedDict[tuple[Path, int], WorkingSite] = OrderedDict()
        """Sites by result folder and index, the one used last at the end."""

    def get(self, run: Run, index: int, folder: Path) -> WorkingSite:
        """Return a site with its trainer; build it, and close the one used longest ago, if needed.

        Parameters
        ----------
        run
            Run of the federation.
        index
            Position of the site in ``run.sites``.
        folder
            Folder of the run, in which ``sites`` has a folder for each site.
        """
        key = (folder, index)
        if key in self._resident:
            self._resident.move_to_end(key)
            if not self._resident[key].interrupted:
                return self._resident[key]
            self._resident.pop(key).close()  # built anew below, in the state that is on disk
        capacity = run.settings.resident_trainers or DEFAULT_RESIDENT
        while len(self._resident) >= capacity:
            _, oldest = self._resident.popitem(last=False)
            oldest.close()
            del oldest  # frees its memory before the next trainer takes some
        self._resident[key] = self._build(run, index, folder)
        return self._resident[key]

    def _build(self, run: Run, index: int, folder: Path) -> WorkingSite:
        if run.num_gpus > 1:
            return RankedSite(run, index, folder, self._observer, self._max_gpu_gb)
        return Site(run, index, folder, self._observer, self._budget)

    def close(self) -> None:
        """Close every site in memory."""
        while self._resident:
            self._resident.popitem()[1].close()
