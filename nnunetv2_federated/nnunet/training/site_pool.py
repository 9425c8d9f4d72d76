"""The trainers that a process keeps in memory, at most a few, whatever the number of sites."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.nnunet.privacy.site_privacy import Budget
from nnunetv2_federated.nnunet.training.site import Site

DEFAULT_RESIDENT = 4
"""Trainers kept in memory unless ``--resident-trainers`` says otherwise."""


class SitePool:
    """Keeps the trainers of the sites used last in memory; the others are on disk only.

    Parameters
    ----------
    observer
        Receives the progress of the sites.
    budget
        What the hospital allows itself of differential privacy's epsilon; ``None`` for no limit.
    """

    def __init__(self, observer: Observer | None = None, budget: Budget | None = None) -> None:
        self._observer = observer or Observer()
        self._budget = budget or Budget()
        self._resident: OrderedDict[tuple[Path, int], Site] = OrderedDict()
        """Sites by result folder and index, the one used last at the end."""

    def get(self, run: Run, index: int, folder: Path) -> Site:
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
        self._resident[key] = Site(run, index, folder, self._observer, self._budget)
        return self._resident[key]

    def close(self) -> None:
        """Close every site in memory."""
        while self._resident:
            self._resident.popitem()[1].close()
