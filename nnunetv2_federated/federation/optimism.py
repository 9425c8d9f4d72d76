"""What a score loses on folds by which nothing was chosen.

The best of many scores on the same cases is too high. How much shows where the setting that was
found is trained and scored on other folds. A fold may be easier than another for every setting, so
the default stands beside it: of its score nothing was chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FoldScore:
    """Scores on one fold, of the setting that was found and of the default."""

    fold: int | str
    found: float
    default: float
    noise: float
    """Standard error of the difference over the validation batches; NaN if it is not known."""

    @property
    def difference(self) -> float:
        """How much better the setting that was found is."""
        return self.found - self.default


@dataclass(frozen=True)
class Optimism:
    """The fold by which was chosen beside others, of which there is at least one."""

    chosen: FoldScore
    others: tuple[FoldScore, ...]

    @property
    def elsewhere(self) -> FoldScore:
        """Means over the other folds; their noises are independent, as they share no batch."""
        count = len(self.others)
        return FoldScore(
            "others",
            _mean([one.found for one in self.others]),
            _mean([one.default for one in self.others]),
            math.sqrt(sum(one.noise**2 for one in self.others)) / count,
        )

    @property
    def found(self) -> float:
        """How much lower the setting that was found scores where it was not chosen."""
        return self.chosen.found - self.elsewhere.found

    @property
    def default(self) -> float:
        """How much lower the default scores there: what the folds differ by."""
        return self.chosen.default - self.elsewhere.default

    @property
    def difference(self) -> float:
        """How much of the difference between both is lost there."""
        return self.found - self.default


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
