"""When a round goes on without the sites that have not answered."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_TIMES_AS_LONG = 4.0
_TIMES_IF_KNOWN = 0.5


@dataclass(frozen=True)
class Grace:
    """What is left to those who have not answered, once enough others have.

    Parameters
    ----------
    least
        Seconds they are given at least.
    needed
        Returns how many of so many answers cannot be done without.
    """

    least: float
    needed: Callable[[int], int]

    def ends(self, asked: int, answered: Sequence[float], *, known: bool = False) -> float:
        """Return after how many seconds those who have not answered are left out.

        Enough have answered when more than half of those asked have, and not fewer than are
        needed. The others get four times as long as that took, at least :attr:`least` seconds
        more. Who is fast or slow in a minority changes nothing, because only the time at which the
        majority was there counts. Where only those are awaited who let their last question's time
        pass, they get half as long as the majority took: a site that hangs costs no round the
        whole grace but its first, and one that is well again is back in time.

        Parameters
        ----------
        asked
            How many were asked.
        answered
            Seconds that each usable answer took.
        known
            Whether all who have not answered did not answer their last question either.

        Returns
        -------
        float
            Counted from the question; infinity while too few have answered.
        """
        enough = max(asked // 2 + 1, self.needed(asked))
        if len(answered) < enough:
            return math.inf
        majority = sorted(answered)[enough - 1]
        if known:
            return majority * (1 + _TIMES_IF_KNOWN)
        return majority + max(self.least, _TIMES_AS_LONG * majority)
