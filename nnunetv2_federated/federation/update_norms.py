"""How long a site's update is, and which way it points.

An update is what a site trained minus what it was sent. A run may have a thousand sites with a
billion weights each, so an update is looked at once, block by block, and only its norm and a
small sketch of its direction are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from nnunetv2_federated.federation.aggregation import Vector

Direction: TypeAlias = npt.NDArray[np.float32]
"""Sketch of an update divided by the update's norm: shape (min(parameters, SKETCH_SIZE),)."""

SKETCH_SIZE = 16381
"""Values of a sketch; at most so many weights are sketched exactly."""

_SEED = 20251


def measure_update(trained: Vector, sent: Vector) -> tuple[float, Direction]:
    """Measure one update.

    The norm is exact, summed in float64: no finite float32 can overflow it. The direction is a
    count sketch (Charikar, Chen, Farach-Colton 2002, doi:10.1007/3-540-45465-9_59): the update is
    cut into rows of ``SKETCH_SIZE`` values, every value gets a random sign, every row is rotated
    by a random offset, and the rows are added. Signs and offsets come from a fixed seed, so they
    are the same for every site, round and machine.

    The inner product of the sketches of two updates u and v has the mean <u, v> and at most the
    variance (|u|² |v|² + <u, v>²) / ``SKETCH_SIZE``: a cosine is off by about 0.01. It is
    exact for up to ``SKETCH_SIZE`` weights. The signs are no secret: a site that wants to can
    make its cosine look like anything, so nothing may be decided by it.

    Parameters
    ----------
    trained, sent
        Finite weights, each of shape (parameters,).

    Returns
    -------
    tuple
        L2 norm and direction of the update; the direction is zeros where nothing changed.
    """
    size = min(SKETCH_SIZE, sent.size)
    random = np.random.Generator(np.random.PCG64(_SEED))
    sketch = np.zeros(size)
    buffer = np.empty(size)
    square = 0.0
    for start in range(0, sent.size, SKETCH_SIZE):
        end = min(start + SKETCH_SIZE, sent.size)
        row = buffer[: end - start]
        np.subtract(trained[start:end], sent[start:end], out=row, dtype=np.float64)
        square += float(np.einsum("i,i->", row, row))  # not a dot product: BLAS has threads
        row *= _signs(random, row.size)
        offset = int(random.integers(size))
        before_the_end = min(size - offset, row.size)
        sketch[offset : offset + before_the_end] += row[:before_the_end]
        sketch[: row.size - before_the_end] += row[before_the_end:]
    norm = math.sqrt(square)
    return norm, (sketch / norm if norm > 0 else sketch).astype(np.float32)


def _signs(random: np.random.Generator, count: int) -> npt.NDArray[np.int8]:
    """Draw -1 and 1, a bit each."""
    bits = np.frombuffer(random.bytes(-(-count // 8)), np.uint8)
    signs = np.unpackbits(bits, count=count).view(np.int8)
    signs *= -2
    signs += 1
    return signs


def shorten_update(trained: Vector, sent: Vector, factor: float) -> Vector:
    """Return ``sent + factor * (trained - sent)``, computed in float64 block by block."""
    shortened = np.empty_like(sent)
    for start in range(0, sent.size, SKETCH_SIZE):
        block = slice(start, start + SKETCH_SIZE)
        step = np.subtract(trained[block], sent[block], dtype=np.float64)
        step *= factor
        step += sent[block]
        shortened[block] = step
    return shortened


def cosines_with_others(directions: Sequence[Direction], lengths: Sequence[float]) -> list[float]:
    """Compare each update with the sum of the others.

    Parameters
    ----------
    directions
        Directions of the updates, each of the same shape.
    lengths
        Weight times norm with which each was aggregated; 0 for one that was not.

    Returns
    -------
    list
        Estimated cosines, in [-1, 1]; NaN where there is nothing to compare.
    """
    if not directions:
        return []
    total = np.zeros(directions[0].size)
    for direction, length in zip(directions, lengths, strict=True):
        total += length * direction.astype(np.float64)
    cosines = []
    for direction, length in zip(directions, lengths, strict=True):
        own = direction.astype(np.float64)
        others = total - length * own
        scale = math.sqrt(np.einsum("i,i->", own, own) * np.einsum("i,i->", others, others))
        cosine = float(np.einsum("i,i->", own, others)) / scale if scale > 0 else math.nan
        cosines.append(min(1.0, max(-1.0, cosine)) if scale > 0 else math.nan)
    return cosines
