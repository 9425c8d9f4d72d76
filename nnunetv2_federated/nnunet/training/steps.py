"""A round's training iterations: how many there were, and none after its time is over."""

from __future__ import annotations

import time
from typing import Any

import numpy as np


class Steps:
    """Counts a round's training iterations, until its time is over."""

    def __init__(self, seconds: float | None = None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._losses: list[float] = []
        self._skipped = 0

    def over(self) -> bool:
        """Whether the time is over, and there was an iteration."""
        return self._end is not None and bool(self._losses) and time.monotonic() > self._end

    def take(self, outputs: dict[str, Any]) -> dict[str, Any]:
        """Count an iteration."""
        self._losses.append(float(np.mean(outputs["loss"])))
        return outputs

    @property
    def done(self) -> int:
        """How many iterations there were, with those that the end of the time left out."""
        return len(self._losses) + self._skipped

    def skip(self) -> dict[str, Any]:
        """Stand in for an iteration, without changing the epoch's mean loss."""
        self._skipped += 1
        return {"loss": np.mean(self._losses)}

    @property
    def completed(self) -> float:
        """Share of the iterations that were done."""
        return len(self._losses) / self.done if self.done else 1.0


class UntilDeadline:
    """A loader that repeats its last batch when the time is over: nothing is done with it."""

    def __init__(self, loader: Any, steps: Steps) -> None:  # noqa: ANN401  # nnU-Net's loaders
        self._loader = loader
        self._steps = steps
        self._batch: Any = None

    def __next__(self) -> Any:  # noqa: ANN401
        if self._batch is None or not self._steps.over():
            self._batch = next(self._loader)
        return self._batch
