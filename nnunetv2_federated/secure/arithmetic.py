"""Numbers that can be masked: whole ones, which wrap around and are added without an error.

A change of a weight becomes an integer of 32 bits. Sites weight their own changes with their share
of all cases, so the shares add up to at most 1, and the sum of all sites fits whatever their
number. Beside the weights goes a short tail of 64 bits each: the weight of a site, counts, and
sums of losses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.errors import SpoiledError

Ring: TypeAlias = npt.NDArray[np.uint32]
"""Integers modulo 2**32: shape (parameters,)."""
Tail: TypeAlias = npt.NDArray[np.uint64]
"""Integers modulo 2**64: shape (entries,). The first is the weight; counts and values follow."""

MOST_SITES = 128
"""Sites whose rounding still fits: each is off by at most half a unit."""
WEIGHT_UNIT = 2**32
"""Units of 1 case: a weight is a number of cases times a share of a round's iterations."""
VALUE_UNIT = 2**24
"""Units of 1 in a sum of losses."""
LARGEST_ENTRY = 2**56 - 1
"""Largest absolute value of an entry of the tail of one site; 128 of them fit into 63 bits."""
BLOCK = 1 << 18
"""Values that are worked on at a time: 1 MiB of 32 bits."""

_HALF = 2**31


def units_of(largest_change: float) -> float:
    """Return how many units a change of 1 has, if changes of up to ``largest_change`` fit."""
    return (_HALF - MOST_SITES) / largest_change


def rounding_error(sites: int, largest_change: float, share: float = 1.0) -> float:
    """Return the largest error of a mean by rounding changes to units.

    The mean is returned in float32, which rounds it once more, by 6e-8 of the value.

    Parameters
    ----------
    sites
        Sites whose changes were added.
    largest_change
        Largest change that fits.
    share
        Sum of the shares of these sites: the weights of those that stayed, divided by all cases.
    """
    return sites * 0.5 / (units_of(largest_change) * share)


@dataclass(frozen=True)
class PooledTail:
    """What the tails of all sites add up to."""

    weight: float
    """Cases, each counted by the share of the round's iterations that its site has done."""
    counts: tuple[int, ...]
    values: tuple[float, ...]


def pool_tail(total: Tail, counts: int) -> PooledTail:
    """Read a sum of tails.

    Parameters
    ----------
    total
        Sum of the tails without masks, shape (1 + counts + values,).
    counts
        How many entries are counts.

    Raises
    ------
    SpoiledError
        If the weight is not positive or a count is negative: a site sent something else than it
        should.
    """
    weight, *entries = (int(entry) for entry in total.view(np.int64))
    if weight <= 0 or min(entries[:counts], default=0) < 0:
        raise SpoiledError("the sum of the sites' counts is no sum of counts: a site sent nonsense")
    values = tuple(value / VALUE_UNIT for value in entries[counts:])
    return PooledTail(weight / WEIGHT_UNIT, tuple(entries[:counts]), values)


def tail_bytes(tail: Tail) -> bytes:
    """Return a tail as bytes for a message."""
    return tail.astype("<u8", copy=False).tobytes()


def tail_of(content: bytes) -> Tail:
    """Read what :func:`tail_bytes` has written, shape (entries,).

    Raises
    ------
    ValueError
        If it is not of whole entries.
    """
    return np.frombuffer(content, "<u8").astype(np.uint64)


def mean_change(total: Ring, largest_change: float, share: float) -> Vector:
    """Return the mean change of the weights: float32, shape (parameters,).

    Parameters
    ----------
    total
        Sum of the sites' vectors without masks.
    largest_change
        Largest change that fits.
    share
        Sum of the shares of the sites in it, above 0 and at most 1.
    """
    factor = 1 / (units_of(largest_change) * share)
    mean = np.empty(total.size, np.float32)
    for start in range(0, total.size, BLOCK):
        part = total[start : start + BLOCK].view(np.int32)
        mean[start : start + part.size] = part * factor
    return mean


def share_of(weight: float, total_cases: int) -> float:
    """Return the sum of the shares of those who stayed, from the sum of their weights.

    Raises
    ------
    SpoiledError
        If it is more than all cases: a site has told more cases than it has.
    """
    if weight > total_cases:
        raise SpoiledError(
            f"the sites' weights add up to {weight:g} cases, but all sites together have "
            f"{total_cases}: a site sent nonsense"
        )
    return weight / total_cases


def fixed_weight(weight: float) -> int:
    """Return a weight as an entry of the tail.

    Raises
    ------
    ValueError
        If it is not positive and finite, or too large or too small to be an entry.
    """
    return _checked("the weight", weight, WEIGHT_UNIT, 1)


def fixed_values(values: Sequence[float]) -> list[int]:
    """Return values as entries of the tail.

    Raises
    ------
    ValueError
        If one is not finite, or too large to be an entry.
    """
    return [_checked("a value", value, VALUE_UNIT, -LARGEST_ENTRY) for value in values]


def _checked(what: str, value: float, unit: int, least: int) -> int:
    entry = round(value * unit) if math.isfinite(value) else None
    if entry is None or not least <= entry <= LARGEST_ENTRY:
        raise ValueError(
            f"{what} {value:g} is not between {least / unit:g} and {LARGEST_ENTRY / unit:g}"
        )
    return entry
