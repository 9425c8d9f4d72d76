"""Count the training iterations of a round, and skip those after its time is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np


class Steps:
    """Counts the training iterations of a round.

    Parameters
    ----------
    seconds
        Time of the round; ``None`` for no limit.
    agreed
        Returns what all processes of the training make of what this one finds.
    """

    def __init__(
        self, seconds: float | None = None, agreed: Callable[[bool], bool] = lambda found: found
    ) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._agreed = agreed
        self._over = False
        self._losses: list[float] = []
        self._skipped = 0

    def over(self) -> bool:
        """Whether the time is over and at least one iteration was done."""
        if self._end is not None and self._losses and not self._over:
            self._over = self._agreed(time.monotonic() > self._end)
        return self._over

    def take(self, outputs: dict[str, Any]) -> dict[str, Any]:
        """Count an iteration that returned ``outputs``; return them."""
        self._losses.append(float(np.mean(outputs["loss"])))
        return outputs

    @property
    def done(self) -> int:
        """Number of iterations, with those that were skipped."""
        return len(self._losses) + self._skipped

    def skip(self) -> dict[str, Any]:
        """Return outputs in place of an iteration; they do not change the epoch's mean loss."""
        self._skipped += 1
        return {"loss": np.mean(self._losses)}

    @property
    def completed(self) -> float:
        """Share of the iterations that were not skipped."""
        return len(self._losses) / self.done if self.done else 1.0


class UntilDeadline:
    """Data loader that repeats its last batch once the time is over.

    nnU-Net's loop asks for a batch before each iteration, also before one that is skipped.
    """

    def __init__(self, loader: Any, steps: Steps) -> None:  # noqa: ANN401  # nnU-Net's loaders
        self._loader = loader
        self._steps = steps
        self._batch: Any = None

    def __next__(self) -> Any:  # noqa: ANN401
        if self._batch is None or not self._steps.over():
            self._batch = next(self._loader)
        return self._batch
