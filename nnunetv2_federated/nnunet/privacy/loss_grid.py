"""How finely an accountant divides privacy losses: as finely as its time allows.

A finer grid is closer to the truth, a coarser one above it. Time grows with the cells of a single
step's losses, which are computed one by one, and with those of the sum over all steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from nnunetv2_federated.federation.mechanism import Mechanism

_GRID = 1e-4
"""Intervals are this, times or divided by powers of two: so each lies within all coarser ones."""
_FINEST = 1e-6
"""Finer than this, rounding errors grow faster than the grid's own errors shrink."""
_ALL = 1 - 1e-9
"""From here on a probability counts as 1, which costs no less: the library fails near it."""
_LEAST_NOISE = 1e-3
"""With less noise, in units of what one patient changes, a loss is above 500,000."""
_LARGEST = 700.0
"""Largest number of which the exponential is taken."""
_CELLS_OF_A_STEP = 50_000
_CELLS_OF_ALL = 200_000
_DEVIATIONS = 16
"""Width of what is kept of a sum of losses, in standard deviations, from end to end."""


def as_one_step(mechanism: Mechanism) -> Mechanism:
    """Return steps that use every patient as one step, to which they are exactly equal."""
    if mechanism.probability < _ALL:
        return mechanism
    return Mechanism(1.0, mechanism.noise_multiplier / math.sqrt(mechanism.steps), 1)


def choose_interval(mechanisms: Sequence[Mechanism], distance: int) -> float:
    """Return the interval of the grid on which a composition is computed.

    Parameters
    ----------
    mechanisms
        Steps, as :func:`as_one_step` has them.
    distance
        Largest change of a sum by one patient, in units of the clip: 1 if he is added or removed, 2
        if he is another one.

    Returns
    -------
    float
        Infinity where losses have no bound worth a grid.
    """
    relative = [(one.probability, one.noise_multiplier / distance, one.steps) for one in mechanisms]
    if min(noise for _, noise, _ in relative) < _LEAST_NOISE:
        return math.inf
    widths = [_width(probability, noise) for probability, noise, _ in relative]
    variance = sum(steps * _variance(probability, noise) for probability, noise, steps in relative)
    needed = max(
        max(widths) / _CELLS_OF_A_STEP,
        sum(widths) / _CELLS_OF_ALL,
        (max(widths) + _DEVIATIONS * math.sqrt(variance)) / _CELLS_OF_ALL,
        _FINEST,
    )
    return float(_GRID * 2.0 ** math.ceil(math.log2(needed / _GRID)))


def _width(probability: float, noise: float) -> float:
    """Bound the losses of one step from end to end, but for what is out of all probability."""
    most = 0.5 / noise**2 + 10 / noise
    gained = most if most > _LARGEST else math.log1p(probability * math.expm1(most))
    lost = math.inf if probability == 1 else -math.log1p(-probability)
    return gained + min(most, lost)


def _variance(probability: float, noise: float) -> float:
    """Bound the variance of the loss of one step, roughly.

    Little noise: a patient is drawn or not, and if he is the loss has mean ``1 / (2 noise**2)`` and
    variance ``1 / noise**2``. Much noise: the chi-square divergence of a sample.
    """
    drawn = probability * (0.25 / noise**4 + 1 / noise**2)
    if 1 / noise**2 > _LARGEST:
        return drawn
    return min(drawn, probability**2 * math.expm1(1 / noise**2))
