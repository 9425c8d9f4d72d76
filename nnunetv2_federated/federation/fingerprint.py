"""Fingerprints without patients: what a site tells of its images, and how sites are pooled.

A site's fingerprint is to nnU-Net's ``dataset_fingerprint.json`` what a table of counts is to a
list of patients: sums, a histogram, and for each axis how often a (spacing, size) pair occurs.
Everything nnU-Net's planners compute from a fingerprint they compute axis by axis, so the plans of
the pooled data can be had without linking the axes of a case.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.federation.messages import MOST_CASES
from nnunetv2_federated.federation.text import clean

MAX_BINS = 4096
"""Bins of a histogram of one channel; whole numbers over a smaller range are kept exactly."""

RELATIVE_SIZE_BINS = 128
"""The relative size after cropping is told as a multiple of 1/128: the exact product of three
ratios could link the axes of a case."""

TOTAL_SAMPLES = 10e7
"""Foreground voxels nnU-Net's extractor samples over the whole dataset."""

_PERCENTILES = (0.5, 50.0, 99.5)
_FLOAT32_BITS = 24
# Of what comes from others: far beyond any image, far below what overflows.
_MOST_CHANNELS = 1000
_MOST_CHARACTERS = 16 * 2**20
_LARGEST_SIZE = 10**6
_LARGEST_NUMBER = 1e40
_LARGEST_EXPONENT = 150
_MOST_VOXELS = 10**12

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
AxisCounts = tuple[tuple[float, int, int], ...]
"""``(spacing, size, cases)``, sorted."""


def samples_per_case(cases: int) -> int:
    """Voxels to sample in each case, so that the whole federation samples as nnU-Net would."""
    return int(TOTAL_SAMPLES // cases)


@dataclass(frozen=True)
class Channel:
    """Foreground intensities of one channel: moments, range and histogram.

    Bin ``i`` of the histogram is ``[first_i, last_i + 1) * 2**exponent``. Such bins nest, so a
    histogram can be made coarser without another look at the voxels.
    """

    count: int
    sum: float
    sum_squared_deviations: float
    """From this channel's own mean; a sum of squares would cancel where mean >> std."""
    min: float
    max: float
    whole_numbers: bool
    exponent: int
    first: Ints
    last: Ints
    counts: Ints

    @property
    def values(self) -> Floats:
        """The value each bin stands for: its centre, or the whole number (or their mean) in it."""
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
        exponent = _exponent(low, high, whole_numbers=whole)
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
        """Merge bins into bins of width ``2**exponent``."""
        shift = exponent - self.exponent
        if shift == 0:
            return self
        first, inverse = np.unique(self.first >> shift, return_inverse=True)
        last = np.full(first.size, np.iinfo(np.int64).min)
        np.maximum.at(last, inverse, self.last >> shift)
        counts = np.zeros(first.size, np.int64)
        np.add.at(counts, inverse, self.counts)
        return replace(self, exponent=exponent, first=first, last=last, counts=counts)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        arrays = {key: getattr(self, key).tolist() for key in ("first", "last", "counts")}
        return {**self.__dict__, **arrays}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Read what :meth:`to_dict` wrote; ``ValueError`` or ``TypeError`` if it does not fit."""
        first, last, counts = (_ints(raw.pop(key)) for key in ("first", "last", "counts"))
        channel = cls(**raw, first=first, last=last, counts=counts)
        numbers = (channel.sum, channel.sum_squared_deviations, channel.min, channel.max)
        fits = (
            all(type(x) in (int, float) and abs(x) <= _LARGEST_NUMBER for x in numbers)
            and type(channel.whole_numbers) is bool
            and type(channel.exponent) is int
            and abs(channel.exponent) <= _LARGEST_EXPONENT
            and channel.min <= channel.max
            and channel.sum_squared_deviations >= 0
            and first.shape == last.shape == counts.shape
            and 0 < counts.size <= MAX_BINS
            and bool(np.all(first <= last))
            and bool(np.all(counts > 0))
            and type(channel.count) is int
            and counts.max() <= channel.count <= _MOST_VOXELS
            and counts.sum() == channel.count
        )
        if not fits:
            raise ValueError("a channel's histogram and moments do not fit each other")
        return channel


def _exponent(low: float, high: float, *, whole_numbers: bool) -> int:
    """Exponent of the finest bins of which ``MAX_BINS`` cover the range."""
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
    coarse = [channel.coarser(exponent) for channel in channels]
    bounds = np.stack(
        [
            np.concatenate([channel.first for channel in coarse]),
            np.concatenate([channel.last for channel in coarse]),
        ]
    )
    order = np.lexsort(bounds[::-1])
    bounds = bounds[:, order]
    starts = np.flatnonzero(
        np.concatenate([[True], np.any(bounds[:, 1:] != bounds[:, :-1], axis=0)])
    )
    counts = np.concatenate([channel.counts for channel in coarse])[order]
    return Channel(
        count=count,
        sum=total,
        sum_squared_deviations=math.fsum((*within, *between)),
        min=min(channel.min for channel in channels),
        max=max(channel.max for channel in channels),
        whole_numbers=all(channel.whole_numbers for channel in channels),
        exponent=exponent,
        first=bounds[0, starts],
        last=bounds[1, starts],
        counts=np.add.reduceat(counts, starts),
    )


def percentiles(channel: Channel, q: Sequence[float]) -> list[float]:
    """Percentiles as ``numpy.percentile`` interpolates them, within half a bin."""
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


@dataclass(frozen=True)
class CaseFingerprint:
    """What is read from one case; never leaves the site."""

    spacing: tuple[float, ...]
    size: tuple[int, ...]
    """Voxels after cropping to nonzero."""
    relative_size: float
    channels: tuple[Channel | None, ...]
    """``None`` where the case has no foreground."""


@dataclass(frozen=True)
class SiteFingerprint:
    """What a site tells of its images, and what several sites are pooled to."""

    site: str
    cases: int
    channels: tuple[Channel | None, ...]
    """``None`` where no case has foreground: there is nothing to tell of its intensities."""
    axes: tuple[AxisCounts, ...]
    """For each axis how many cases have a (spacing, size), axes linked neither to each other nor
    to a case."""
    relative_sizes: tuple[tuple[float, int], ...]
    """``(voxels after cropping / voxels before, in multiples of 1/128, cases)``, sorted."""

    def check(self) -> None:
        """Raise ``ValueError`` unless the fields fit each other."""
        tables = (*self.axes, self.relative_sizes)
        if not isinstance(self.site, str) or clean(self.site) != self.site:
            raise ValueError("site is no name")
        if type(self.cases) is not int or not 0 < self.cases <= MOST_CASES:
            raise ValueError(f"cases are not from 1 to {MOST_CASES}")
        if len(self.axes) != 3 or not 0 < len(self.channels) <= _MOST_CHANNELS:
            raise ValueError("axes or channels are not what they should be")
        if len({channel is None for channel in self.channels}) != 1:
            raise ValueError("some channels have foreground and others none")
        if any(sum(row[-1] for row in table) != self.cases for table in tables):
            raise ValueError("the counts do not add up to the cases")

    def to_json(self) -> str:
        """Serialise, readable by :meth:`from_json`."""
        channels = [channel and channel.to_dict() for channel in self.channels]
        return json.dumps({**self.__dict__, "channels": channels})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read and check what came from a site.

        Raises
        ------
        SiteError
            If a field is missing, unknown, of another type, or contradicts another.
        """
        if len(text) > _MOST_CHARACTERS:
            raise SiteError(f"not a valid SiteFingerprint: {len(text)} characters are too many")
        try:
            raw = from_json(text, allow_inf_nan=False)
            fingerprint = cls(
                site=raw.pop("site"),
                cases=raw.pop("cases"),
                channels=tuple(
                    None if c is None else Channel.from_dict(c) for c in raw.pop("channels")
                ),
                axes=tuple(_table(axis, (float, int, int)) for axis in raw.pop("axes")),
                relative_sizes=_table(raw.pop("relative_sizes"), (float, int)),
                **raw,
            )
            fingerprint.check()
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            raise SiteError(f"not a valid SiteFingerprint: {clean(error)}") from None
        return fingerprint


def _table(rows: Iterable[Sequence[Any]], types: tuple[type, ...]) -> tuple[Any, ...]:
    table = []
    for row in rows:
        if len(row) != len(types):
            raise ValueError("a row of another length")
        for value, kind in zip(row, types, strict=True):
            if type(value) not in {kind, int} or not 0 < value <= _LARGEST_SIZE:
                raise ValueError(f"a value is no {kind.__name__} from 0 to {_LARGEST_SIZE}")
        table.append(tuple(kind(value) for value, kind in zip(row, types, strict=True)))
    return tuple(table)


def summarise_site(
    site: str, cases: Sequence[CaseFingerprint], min_cases: int | None = None
) -> SiteFingerprint:
    """Summarise the cases of a site.

    Parameters
    ----------
    site
        Its name.
    cases
        All its training cases.
    min_cases
        Merge bins and (spacing, size) pairs until each holds at least so many cases, and tell the
        outermost bin edges for minimum and maximum; ``None`` for neither.
    """
    pooled: list[Channel | None] = []
    for i in range(len(cases[0].channels)):
        present = [channel for case in cases if (channel := case.channels[i]) is not None]
        if not present:  # healthy cases only: their number and sizes count all the same
            pooled.append(None)
            continue
        channel = pool_channels(present)
        fitting = _exponent(channel.min, channel.max, whole_numbers=channel.whole_numbers)
        channel = channel.coarser(max(channel.exponent, fitting))
        pooled.append(channel if min_cases is None else _merge_bins(channel, present, min_cases))
    axes = [
        sorted((float(case.spacing[axis]), int(case.size[axis])) for case in cases)
        for axis in range(3)
    ]
    sizes = sorted(math.floor(c.relative_size * RELATIVE_SIZE_BINS) or 1 for c in cases)
    if min_cases is not None:
        axes = [_merge_pairs(axis, min_cases) for axis in axes]
        sizes = [round(size) for size, _ in _merge_pairs([(s, 0) for s in sizes], min_cases)]
    return SiteFingerprint(
        site=site,
        cases=len(cases),
        channels=tuple(pooled),
        axes=tuple(_rows(Counter(axis)) for axis in axes),
        relative_sizes=tuple(
            (size / RELATIVE_SIZE_BINS, n) for size, n in sorted(Counter(sizes).items())
        ),
    )


def _groups(holders: Sequence[set[int]], min_cases: int) -> list[tuple[int, int]]:
    """Cut a row of bins into runs ``[start, stop)`` that hold at least so many cases each."""
    runs, start, seen = [], 0, set[int]()
    for i, holder in enumerate(holders):
        seen |= holder
        if len(seen) >= min_cases:
            runs.append((start, i + 1))
            start, seen = i + 1, set()
    if start < len(holders):
        start = runs.pop()[0] if runs else 0
        runs.append((start, len(holders)))
    return runs


def _merge_bins(channel: Channel, cases: Sequence[Channel], min_cases: int) -> Channel:
    holders: list[set[int]] = [set() for _ in channel.first]
    for number, case in enumerate(cases):
        bins = np.searchsorted(channel.first, case.coarser(channel.exponent).first)
        for i in bins:
            holders[i].add(number)
    runs = _groups(holders, min_cases)
    first = np.asarray([channel.first[start] for start, _ in runs])
    last = np.asarray([channel.last[stop - 1] for _, stop in runs])
    width = 2.0**channel.exponent
    return replace(
        channel,
        min=float(first[0] * width),
        max=float((last[-1] + 1) * width) - (1.0 if channel.whole_numbers else 0.0),
        first=first,
        last=last,
        counts=np.asarray([channel.counts[start:stop].sum() for start, stop in runs]),
    )


def _merge_pairs(pairs: list[tuple[float, int]], min_cases: int) -> list[tuple[float, int]]:
    """Replace sorted pairs by the mean of their group; equal pairs stay together."""
    distinct = sorted(Counter(pairs).items())
    numbers = iter(range(len(pairs)))
    holders = [{next(numbers) for _ in range(count)} for _, count in distinct]
    merged = []
    for start, stop in _groups(holders, min_cases):
        counts = [count for _, count in distinct[start:stop]]
        means = [
            float(np.average([pair[k] for pair, _ in distinct[start:stop]], weights=counts))
            for k in (0, 1)
        ]
        merged += [(means[0], round(means[1]))] * sum(counts)
    return merged


def _rows(counter: Counter[tuple[float, int]]) -> AxisCounts:
    return tuple((*pair, cases) for pair, cases in sorted(counter.items()))


def pool_sites(sites: Sequence[SiteFingerprint]) -> SiteFingerprint:
    """Pool the fingerprints of all sites; the same for every order of the sites.

    A site without foreground adds its cases and their sizes, and no intensities.
    """
    axes: list[Counter[tuple[float, int]]] = [Counter() for _ in range(3)]
    sizes: Counter[float] = Counter()
    for site in sites:
        for counter, axis in zip(axes, site.axes, strict=True):
            for spacing, size, cases in axis:
                counter[spacing, size] += cases
        for relative_size, cases in site.relative_sizes:
            sizes[relative_size] += cases
    return SiteFingerprint(
        site="",
        cases=sum(site.cases for site in sites),
        channels=tuple(
            pool_channels(present) if (present := [c for c in of_all if c is not None]) else None
            for of_all in zip(*(s.channels for s in sites), strict=True)
        ),
        axes=tuple(_rows(counter) for counter in axes),
        relative_sizes=tuple(sorted(sizes.items())),
    )


def nnunet_fingerprint(pooled: SiteFingerprint) -> dict[str, Any]:
    """Return what nnU-Net's planners read, in the form of ``dataset_fingerprint.json``.

    The rows of ``spacings`` and ``shapes_after_crop`` are no cases: each axis is sorted by itself.

    Raises
    ------
    SiteError
        If no site has foreground.
    """
    channels = [channel for channel in pooled.channels if channel is not None]
    if len(channels) < len(pooled.channels):
        raise SiteError(
            "no training case of any site has foreground: nnU-Net cannot learn from that; check "
            "the masks in labelsTr."
        )
    columns = [
        [(spacing, size) for spacing, size, cases in axis for _ in range(cases)]
        for axis in pooled.axes
    ]
    rows = list(zip(*columns, strict=True))
    sizes = [size for size, cases in pooled.relative_sizes for _ in range(cases)]
    return {
        "spacings": [[spacing for spacing, _ in row] for row in rows],
        "shapes_after_crop": [[size for _, size in row] for row in rows],
        "foreground_intensity_properties_per_channel": {
            str(i): nnunet_properties(channel) for i, channel in enumerate(channels)
        },
        "median_relative_size_after_cropping": float(np.median(sizes)),
    }
