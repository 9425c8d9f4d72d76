"""What a site adds to a sum: its change of the weights, its weight, and what it tells of losses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.secure.arithmetic import (
    BLOCK,
    LARGEST_ENTRY,
    WEIGHT_UNIT,
    Ring,
    Tail,
    fixed_values,
    fixed_weight,
    units_of,
)
from nnunetv2_federated.secure.messages import RoundTerms


@dataclass(frozen=True)
class Tensor:
    """A tensor's place in the vector, so that a message can name it."""

    name: str
    start: int
    """Index of its first value; the tensor ends where the next one starts."""


@dataclass(frozen=True)
class Contribution:
    """A site's part of a round. Nothing of it leaves the site without masks."""

    change: Vector
    """Trained minus received weights: float32, shape (parameters,). It may be mapped from disk."""
    weight: float
    """Cases, times the share of the round's iterations that were done."""
    counts: tuple[int, ...] = ()
    """Numbers that are added up over the sites, at least 0: iterations, voxels."""
    values: tuple[float, ...] = ()
    """Sums over iterations that are added up over the sites: losses."""

    def check(self, terms: RoundTerms, tensors: Sequence[Tensor] = ()) -> None:
        """Look whether it can be added, before anything of it is told.

        Parameters
        ----------
        terms
            What was agreed for the round.
        tensors
            Places of the tensors, in the order of the vector, for the message.

        Raises
        ------
        SiteError
            If a number is missing, not finite, or too large; names the tensor. Nothing is clipped.
        """
        found = (self.change.size, len(self.counts), len(self.values))
        agreed = (terms.parameters, terms.counts, terms.values)
        if found != agreed or self.change.dtype != np.float32 or self.change.ndim != 1:
            raise SiteError(
                f"an update of {found} weights, counts and values cannot be added: agreed are "
                f"{agreed}, in float32"
            )
        if not (self.weight <= terms.total_cases and self.weight > 0):
            raise SiteError(
                f"a weight of {self.weight:g} cases cannot be added: all sites together have "
                f"{terms.total_cases}"
            )
        if not all(0 <= count <= LARGEST_ENTRY for count in self.counts):
            raise SiteError(f"a count is not between 0 and {LARGEST_ENTRY}")
        self.tail()
        _check_change(self.change, terms.largest_change, tensors)

    def digest(self) -> str:
        """Return the SHA-256 of all of it: what was masked once is never masked otherwise."""
        entries = [self.weight, list(self.counts), list(self.values)]
        digest = hashlib.sha256(json.dumps(entries).encode())
        for start in range(0, self.change.size, BLOCK):
            digest.update(np.ascontiguousarray(self.change[start : start + BLOCK]).data)
        return digest.hexdigest()

    def tail(self) -> Tail:
        """Return weight, counts and values as entries of the tail, shape (entries,).

        Raises
        ------
        SiteError
            If one is not finite or too large.
        """
        try:
            entries = [fixed_weight(self.weight), *self.counts, *fixed_values(self.values)]
        except ValueError as error:
            raise SiteError(f"cannot be added to a sum: {error}") from None
        return np.array(entries, np.int64).view(np.uint64)

    def ring(self, terms: RoundTerms) -> Ring:
        """Return the weighted change in units, without any mask: shape (parameters,)."""
        weight = fixed_weight(self.weight) / WEIGHT_UNIT  # as the tail tells it
        factor = units_of(terms.largest_change) * (weight / terms.total_cases)
        ring = np.empty(self.change.size, np.uint32)
        block = np.empty(min(BLOCK, self.change.size), np.float64)
        for start in range(0, self.change.size, BLOCK):
            part = self.change[start : start + BLOCK]
            units = block[: part.size]
            np.multiply(part, factor, out=units, dtype=np.float64)
            np.rint(units, out=units)
            ring[start : start + part.size].view(np.int32)[:] = units
        return ring


def _check_change(change: Vector, largest: float, tensors: Sequence[Tensor]) -> None:
    for start in range(0, change.size, BLOCK):
        # in 64 bits: a bound that is rounded to 32 would let through what wraps around
        fits = np.abs(change[start : start + BLOCK]) <= np.float64(largest)  # NaN does not
        if not fits.all():
            place = start + int(np.argmin(fits))
            raise SiteError(
                f"a change of {_name_of(place, tensors)} cannot be added: it is not finite or "
                f"beyond {largest:g} (--secure-range)"
            )


def _name_of(place: int, tensors: Sequence[Tensor]) -> str:
    before = [tensor.name for tensor in tensors if tensor.start <= place]
    return before[-1] if before else f"weight {place}"
