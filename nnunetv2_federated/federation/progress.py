"""How long something still takes that is done in equal steps, such as rounds or cases."""

from __future__ import annotations

import time
from collections.abc import Callable


class Progress:
    """Estimates the time left from the steps that were finished.

    The first step is not counted: it also builds trainers, compiles and fills caches.

    Parameters
    ----------
    clock
        Returns seconds that only grow.
    total
        Number of steps; ``None`` if it is not known.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, total: int | None = None
    ) -> None:
        self.total = total
        self._clock = clock
        self._first: tuple[int, float] | None = None
        """Number of the step that was finished first, and when."""

    def finished(self, number: int) -> str | None:
        """Take note that a step is finished; return the time left in words.

        Parameters
        ----------
        number
            Number of the step, from 1; steps of an earlier process may be missing.

        Returns
        -------
        str or None
            For example ``12 min``; ``None`` if it cannot be known yet, or nothing is left.
        """
        now = self._clock()
        if self._first is None or number <= self._first[0]:
            self._first = (number, now)
            return None
        if self.total is None or number >= self.total:
            return None
        step, began = self._first
        return in_words((now - began) / (number - step) * (self.total - number))


def in_words(seconds: float) -> str:
    """Return a duration in a unit that suits it: ``45 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 36 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
