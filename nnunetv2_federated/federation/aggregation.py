"""Averaging that never holds more than one reply."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Vector: TypeAlias = npt.NDArray[np.float32]
"""A network's federated tensors, flattened and joined: shape (parameters,)."""

_BLOCK = 1 << 15  # elements; three float32 blocks stay in a core's cache


class RunningMean:
    """Weighted mean of vectors that arrive one after another, in float32.

    The update ``mean += (x - mean) * (w / total)`` (West 1979, doi:10.1145/359146.359153) needs no
    division at the end, so the mean of a single vector is that vector, bit for bit. The result
    depends on the order of the vectors: feed them in site order.
    """

    def __init__(self) -> None:
        self.total_weight = 0.0
        self._mean: Vector | None = None

    def add(self, vector: Vector, weight: float) -> None:
        """Take one more vector into the mean.

        Raises
        ------
        ValueError
            If the weight is not positive and finite, or the length differs from the first vector's.
        """
        if not (np.isfinite(weight) and weight > 0):
            raise ValueError(f"weight must be positive and finite, got {weight}")
        if self._mean is not None and vector.shape != self._mean.shape:
            raise ValueError(f"expected {self._mean.shape[0]} values, got {vector.shape[0]}")
        self.total_weight += float(weight)
        if self._mean is None:
            self._mean = vector.astype(np.float32, copy=True)
            return
        share = np.float32(weight / self.total_weight)
        buffer = np.empty(min(_BLOCK, vector.size), np.float32)
        for start in range(0, vector.size, _BLOCK):
            mean = self._mean[start : start + _BLOCK]
            step = buffer[: mean.size]
            np.subtract(vector[start : start + _BLOCK], mean, out=step)
            step *= share
            mean += step

    def result(self) -> Vector:
        """Return the mean, shape (parameters,).

        Raises
        ------
        ValueError
            If nothing was added.
        """
        if self._mean is None:
            raise ValueError("the mean of no vectors is undefined")
        return self._mean


def is_finite(vector: Vector) -> bool:
    """Whether every value is a finite number, without a temporary of the vector's size."""
    return all(
        bool(np.isfinite(vector[start : start + _BLOCK]).all())
        for start in range(0, vector.size, _BLOCK)
    )


def dice_per_class(tp: Sequence[float], fp: Sequence[float], fn: Sequence[float]) -> list[float]:
    """Dice of each class from voxel counts, ``2 tp / (2 tp + fp + fn)``; NaN where all are zero."""
    return [
        2 * t / (2 * t + p + n) if 2 * t + p + n > 0 else float("nan")
        for t, p, n in zip(tp, fp, fn, strict=True)
    ]


def mean_dice(dice: Sequence[float]) -> float:
    """Mean over the classes that occur; NaN if none does."""
    known = [d for d in dice if not np.isnan(d)]
    return float(np.mean(known)) if known else float("nan")


def weighted_mean(values: Iterable[tuple[float, float]]) -> float:
    """Mean of ``(value, weight)`` pairs; NaN if the weights sum to zero."""
    pairs = list(values)
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else float("nan")
