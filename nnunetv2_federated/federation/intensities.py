"""Foreground intensities of one channel: moments, range and a histogram that can be pooled.

Cases and sites are pooled without a look at their voxels: moments add up, and bins nest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

MAX_BINS = 4096
"""Largest number of bins of a histogram; whole numbers over a smaller range are kept exactly."""

_PERCENTILES = (0.5, 50.0, 99.5)
_FLOAT32_BITS = 24
# bounds of values from other machines: far beyond any image, far below what overflows
_LARGEST_NUMBER = 1e40
_LARGEST_EXPONENT = 150
_MOST_VOXELS = 10**12

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Channel:
    """Foreground intensities of one channel: moments, range and histogram.

    Bin ``i`` of the histogram is ``[first_i, last_i + 1) * 2**exponent``. Such bins nest, so a
    histogram can be made coarser without another look at the voxels.
    """

    count: int
    """Number of voxels."""
    sum: float
    sum_squared_deviations: float
    """Sum of squared deviations from this channel's own mean.

    A plain sum of squares would lose all digits where the mean is much larger than the deviation.
    """
    min: float
    max: float
    whole_numbers: bool
    """Whether all intensities are whole numbers, as those of CT."""
    exponent: int
    first: Ints
    """First index of each bin, ascending; shape (bins,)."""
    last: Ints
    """Last index of each bin; larger than the first where bins were merged to protect cases."""
    counts: Ints
    """Number of voxels in each bin."""

    @property
    def values(self) -> Floats:
        """Value that each bin stands for: its centre, or the mean of the whole numbers in it."""
        width = 2.0**self.exponent
        low, high = self.first * width, (self.last + 1) * width
        return (low + high - (1.0 if self.whole_numbers else 0.0)) / 2

    @classmethod
    def of(cls, intensities: NDArray[Any]) -> Self:
        """Summarise at least one finite intensity."""
        values = np.asarray(intensities, np.float64)
        mean = float(values.mean())
        whole = bool(np.all(values == np.floor(values)))
        low, high = float(values.min()), float(values.max())
        exponent = bin_exponent(low, high, whole_numbers=whole)
        index, counts = np.unique(
            np.floor(values / 2.0**exponent).astype(np.int64), return_counts=True
        )
        return cls(
            count=values.size,
            sum=math.fsum((mean * values.size, float((values - mean).sum()))),
            sum_squared_deviations=float(np.square(values - mean).sum()),
            min=low,
            max=high,
            whole_numbers=whole,
            exponent=exponent,
            first=index,
            last=index,
            counts=counts.astype(np.int64),
        )

    def coarser(self, exponent: int) -> Channel:
        """Merge bins into bins of width ``2**exponent``, at least as wide as they are."""
        shift = exponent - self.exponent
        if shift == 0:
            return self
        # a shift to the right divides and rounds down, also below zero: index i of the fine bins
        # lies in index i >> shift of the coarse ones
        first, inverse = np.unique(self.first >> shift, return_inverse=True)
        last = np.full(first.size, np.iinfo(np.int64).min)
        np.maximum.at(last, inverse, self.last >> shift)
        counts = np.zeros(first.size, np.int64)
        np.add.at(counts, inverse, self.counts)
        return replace(self, exponent=exponent, first=first, last=last, counts=counts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        arrays = {key: getattr(self, key).tolist() for key in ("first", "last", "counts")}
        return {**self.__dict__, **arrays}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Read what :meth:`to_dict` wrote.

        Raises
        ------
        ValueError, TypeError
            If a value is missing, of another type, too large, or contradicts another.
        """
        first, last, counts = (_ints(raw.pop(key)) for key in ("first", "last", "counts"))
        channel = cls(**raw, first=first, last=last, counts=counts)
        if not (channel._has_valid_moments() and channel._has_valid_bins()):
            raise ValueError("a channel's histogram and moments do not fit each other")
        return channel

    def _has_valid_moments(self) -> bool:
        numbers = (self.sum, self.sum_squared_deviations, self.min, self.max)
        return (
            all(type(x) in (int, float) and abs(x) <= _LARGEST_NUMBER for x in numbers)
            and type(self.whole_numbers) is bool
            and self.min <= self.max
            and self.sum_squared_deviations >= 0
        )

    def _has_valid_bins(self) -> bool:
        return (
            type(self.exponent) is int
            and abs(self.exponent) <= _LARGEST_EXPONENT
            and self.first.shape == self.last.shape == self.counts.shape
            and 0 < self.counts.size <= MAX_BINS
            and bool(np.all(self.first <= self.last))
            and bool(np.all(self.counts > 0))
            and type(self.count) is int
            # each count first: a sum of counts that are too large would overflow
            and self.counts.max() <= self.count <= _MOST_VOXELS
            and bool(self.counts.sum() == self.count)
        )


def bin_exponent(low: float, high: float, *, whole_numbers: bool) -> int:
    """Return the exponent of the finest bins of which ``MAX_BINS`` cover a range."""
    largest = max(abs(low), abs(high))
    finest = math.frexp(largest)[1] - _FLOAT32_BITS if largest else 0
    exponent = 0 if whole_numbers else finest
    if high > low:
        exponent = max(exponent, math.frexp((high - low) / MAX_BINS)[1] - 1)
    while math.floor(high / 2.0**exponent) - math.floor(low / 2.0**exponent) >= MAX_BINS:
        exponent += 1
    return exponent


def _ints(values: object) -> Ints:
    if not isinstance(values, list) or any(type(value) is not int for value in values):
        raise TypeError("expected a list of whole numbers")
    return np.asarray(values, np.int64)


def pool_channels(channels: Sequence[Channel]) -> Channel:
    """Pool a channel of several cases or sites; exact but for the bins, in any order.

    Mean and sum of squared deviations are those of the union (Chan, Golub and LeVeque 1979, eq.
    2.1, for many groups at once), summed with ``math.fsum`` so that the order does not matter.
    """
    count = sum(channel.count for channel in channels)
    total = math.fsum(channel.sum for channel in channels)
    mean = total / count
    within = (channel.sum_squared_deviations for channel in channels)
    between = (c.count * (c.sum / c.count - mean) ** 2 for c in channels)
    exponent = max(channel.exponent for channel in channels)
    first, last, counts = _pool_bins([channel.coarser(exponent) for channel in channels])
    return Channel(
        count=count,
        sum=total,
        sum_squared_deviations=math.fsum((*within, *between)),
        min=min(channel.min for channel in channels),
        max=max(channel.max for channel in channels),
        whole_numbers=all(channel.whole_numbers for channel in channels),
        exponent=exponent,
        first=first,
        last=last,
        counts=counts,
    )


def _pool_bins(channels: Sequence[Channel]) -> tuple[Ints, Ints, Ints]:
    """Return first, last and counts of the union of bins; equal bins become one.

    Bins with different bounds stay apart, even where they overlap: sites that merge bins to protect
    cases choose different bounds.
    """
    bounds = np.stack(
        [
            np.concatenate([channel.first for channel in channels]),
            np.concatenate([channel.last for channel in channels]),
        ]
    )
    order = np.lexsort(bounds[::-1])  # by first, then by last
    bounds = bounds[:, order]
    is_new = np.concatenate([[True], np.any(bounds[:, 1:] != bounds[:, :-1], axis=0)])
    starts = np.flatnonzero(is_new)
    counts = np.concatenate([channel.counts for channel in channels])[order]
    return bounds[0, starts], bounds[1, starts], np.add.reduceat(counts, starts)


def percentiles(channel: Channel, q: Sequence[float]) -> list[float]:
    """Return percentiles as ``numpy.percentile`` interpolates them, within half a bin."""
    order = np.argsort(channel.values, kind="stable")
    values, until = channel.values[order], np.cumsum(channel.counts[order])
    ranks = np.asarray(q) / 100 * (channel.count - 1)
    low, high = (
        values[np.searchsorted(until, rank, side="right")]
        for rank in (np.floor(ranks), np.ceil(ranks))
    )
    return [float(x) for x in low + (high - low) * (ranks - np.floor(ranks))]


def nnunet_properties(channel: Channel) -> dict[str, float]:
    """Return nnU-Net's ``foreground_intensity_properties`` of a channel."""
    low, median, high = percentiles(channel, _PERCENTILES)
    return {
        "mean": channel.sum / channel.count,
        "median": median,
        "std": math.sqrt(channel.sum_squared_deviations / channel.count),
        "min": channel.min,
        "max": channel.max,
        "percentile_99_5": high,
        "percentile_00_5": low,
    }
