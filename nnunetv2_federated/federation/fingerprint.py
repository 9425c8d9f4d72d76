"""Fingerprints without patients: what a site sends of its images, and how sites are pooled.

nnU-Net's ``dataset_fingerprint.json`` has a row for each case. A site's fingerprint has sums
instead: a histogram of intensities, and for each axis how often a (spacing, size) pair occurs.
nnU-Net's planners compute everything axis by axis, so these are enough to plan as for the pooled
data, although the axes of a case are not linked to each other.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from pydantic_core import from_json

from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.federation.intensities import (
    Channel,
    bin_exponent,
    nnunet_properties,
    pool_channels,
)
from nnunetv2_federated.federation.payload import MOST_CASES
from nnunetv2_federated.federation.text import clean

RELATIVE_SIZE_BINS = 128
"""The relative size after cropping is rounded to a multiple of 1/128.

It is the product of the ratios of three axes: the exact value could link the axes of a case.
"""

TOTAL_SAMPLES = 10e7
"""Foreground voxels that nnU-Net's extractor samples over a whole dataset."""

# bounds of values from other machines: far beyond any dataset
_MOST_CHANNELS = 1000
_MOST_CHARACTERS = 16 * 2**20
_LARGEST_SIZE = 10**6

AxisCounts = tuple[tuple[float, int, int], ...]
"""Rows ``(spacing, size, cases)`` of one axis, sorted; spacing in mm, size in voxels."""


def samples_per_case(cases: int) -> int:
    """Return how many voxels to sample in a case, so that all sites together sample as nnU-Net."""
    return int(TOTAL_SAMPLES // cases)


@dataclass(frozen=True)
class CaseFingerprint:
    """What is read from the files of one case; it never leaves the site."""

    spacing: tuple[float, ...]
    size: tuple[int, ...]
    """Voxels after cropping to nonzero, (z, y, x)."""
    relative_size: float
    channels: tuple[Channel | None, ...]
    """Foreground intensities of each channel; ``None`` where the case has no foreground."""


@dataclass(frozen=True)
class SiteFingerprint:
    """Summary of the images of a site, or of several sites that were pooled."""

    site: str
    cases: int
    channels: tuple[Channel | None, ...]
    """Foreground intensities of each channel; ``None`` where no case has foreground."""
    axes: tuple[AxisCounts, ...]
    """Number of cases that have a (spacing, size), for each axis.

    The axes are linked neither to each other nor to a case.
    """
    relative_sizes: tuple[tuple[float, int], ...]
    """Rows ``(voxels after cropping / voxels before, cases)``, sorted; multiples of 1/128."""

    def check(self) -> None:
        """Raise ``ValueError`` unless the fields fit each other."""
        if not isinstance(self.site, str) or clean(self.site) != self.site:
            raise ValueError("site is no name")
        if type(self.cases) is not int or not 0 < self.cases <= MOST_CASES:
            raise ValueError(f"cases are not from 1 to {MOST_CASES}")
        if len(self.axes) != 3 or not 0 < len(self.channels) <= _MOST_CHANNELS:
            raise ValueError("axes or channels are not what they should be")
        if len({channel is None for channel in self.channels}) != 1:
            raise ValueError("some channels have foreground and others none")
        if not self._has_tables_of_all_cases():
            raise ValueError("the counts do not add up to the cases")

    def _has_tables_of_all_cases(self) -> bool:
        tables = (*self.axes, self.relative_sizes)
        return all(sum(row[-1] for row in table) == self.cases for table in tables)

    def to_json(self) -> str:
        """Return JSON that :meth:`from_json` reads."""
        channels = [channel and channel.to_dict() for channel in self.channels]
        return json.dumps({**self.__dict__, "channels": channels})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read and check the fingerprint that came from a site.

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


def summarise_cases(
    site: str, cases: Sequence[CaseFingerprint], min_cases: int | None = None
) -> SiteFingerprint:
    """Summarise the cases of a site.

    Parameters
    ----------
    site
        Name of the site.
    cases
        All training cases of the site.
    min_cases
        Protects single cases: bins and (spacing, size) pairs are merged until each holds at least
        so many cases, and the outermost bin edges take the place of minimum and maximum; ``None``
        for no protection.
    """
    channels = [
        _summarise_channel([c for case in cases if (c := case.channels[i]) is not None], min_cases)
        for i in range(len(cases[0].channels))
    ]
    return SiteFingerprint(
        site=site,
        cases=len(cases),
        channels=tuple(channels),
        axes=tuple(_summarise_axis(cases, axis, min_cases) for axis in range(3)),
        relative_sizes=_summarise_relative_sizes(cases, min_cases),
    )


def _summarise_axis(
    cases: Sequence[CaseFingerprint], axis: int, min_cases: int | None
) -> AxisCounts:
    pairs = sorted((float(case.spacing[axis]), int(case.size[axis])) for case in cases)
    return _rows(Counter(pairs if min_cases is None else _merge_pairs(pairs, min_cases)))


def _summarise_relative_sizes(
    cases: Sequence[CaseFingerprint], min_cases: int | None
) -> tuple[tuple[float, int], ...]:
    sizes = sorted(math.floor(case.relative_size * RELATIVE_SIZE_BINS) or 1 for case in cases)
    if min_cases is not None:
        sizes = [round(size) for size, _ in _merge_pairs([(s, 0) for s in sizes], min_cases)]
    return tuple((size / RELATIVE_SIZE_BINS, n) for size, n in sorted(Counter(sizes).items()))


def _summarise_channel(cases: Sequence[Channel], min_cases: int | None) -> Channel | None:
    """Pool a channel of the cases that have foreground; ``None`` if none has."""
    if not cases:
        return None
    channel = pool_channels(cases)
    fitting = bin_exponent(channel.min, channel.max, whole_numbers=channel.whole_numbers)
    channel = channel.coarser(max(channel.exponent, fitting))
    return channel if min_cases is None else _merge_bins(channel, cases, min_cases)


def _groups(holders: Sequence[set[int]], min_cases: int) -> list[tuple[int, int]]:
    """Cut a row of bins into runs ``[start, stop)`` that hold at least ``min_cases`` cases each.

    Parameters
    ----------
    holders
        Cases that have values in each bin, by their numbers.
    min_cases
        Smallest number of different cases of a run. All bins are one run if they hold fewer.
    """
    runs, start, seen = [], 0, set[int]()
    for i, holder in enumerate(holders):
        seen |= holder
        if len(seen) >= min_cases:
            runs.append((start, i + 1))
            start, seen = i + 1, set()
    if start < len(holders):  # the rest holds too few cases: it joins the last run
        start = runs.pop()[0] if runs else 0
        runs.append((start, len(holders)))
    return runs


def _merge_bins(channel: Channel, cases: Sequence[Channel], min_cases: int) -> Channel:
    """Merge bins of a pooled channel until each holds values of at least ``min_cases`` cases."""
    holders: list[set[int]] = [set() for _ in channel.first]
    for number, case in enumerate(cases):
        # every bin of a case is a bin of the pooled channel, once both have the same width
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
    """Replace each of the sorted pairs by the mean of its group; equal pairs stay together."""
    distinct = sorted(Counter(pairs).items())
    # equal pairs are one bin, so that they cannot be cut apart; each pair is one case
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


def pool_fingerprints(sites: Sequence[SiteFingerprint]) -> SiteFingerprint:
    """Pool the fingerprints of all sites; the same for every order of the sites.

    A site without foreground adds its cases and their sizes, and no intensities.
    """
    return SiteFingerprint(
        site="",
        cases=sum(site.cases for site in sites),
        channels=tuple(
            pool_channels(present) if (present := [c for c in of_all if c is not None]) else None
            for of_all in zip(*(site.channels for site in sites), strict=True)
        ),
        axes=tuple(_pool_axis([site.axes[axis] for site in sites]) for axis in range(3)),
        relative_sizes=_pool_relative_sizes([site.relative_sizes for site in sites]),
    )


def _pool_axis(tables: Iterable[AxisCounts]) -> AxisCounts:
    counter: Counter[tuple[float, int]] = Counter()
    for table in tables:
        for spacing, size, cases in table:
            counter[spacing, size] += cases
    return _rows(counter)


def _pool_relative_sizes(
    tables: Iterable[tuple[tuple[float, int], ...]],
) -> tuple[tuple[float, int], ...]:
    counter: Counter[float] = Counter()
    for table in tables:
        for size, cases in table:
            counter[size] += cases
    return tuple(sorted(counter.items()))


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
    rows = list(zip(*map(_pairs_of_cases, pooled.axes), strict=True))
    return {
        "spacings": [[spacing for spacing, _ in row] for row in rows],
        "shapes_after_crop": [[size for _, size in row] for row in rows],
        "foreground_intensity_properties_per_channel": {
            str(i): nnunet_properties(channel) for i, channel in enumerate(channels)
        },
        "median_relative_size_after_cropping": _median_relative_size(pooled),
    }


def _pairs_of_cases(axis: AxisCounts) -> list[tuple[float, int]]:
    """Return each (spacing, size) as often as it has cases."""
    return [(spacing, size) for spacing, size, cases in axis for _ in range(cases)]


def _median_relative_size(pooled: SiteFingerprint) -> float:
    sizes = [size for size, cases in pooled.relative_sizes for _ in range(cases)]
    return float(np.median(sizes))
