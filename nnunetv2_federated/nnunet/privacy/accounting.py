"""How much privacy steps cost, and how much noise a budget needs, by Google's ``dp-accounting``.

The accountant composes privacy loss distributions (Koskela et al. 2020, arXiv:1906.03049), on a
grid to which losses are rounded up (Doroshenko et al. 2022, arXiv:2207.04380): whatever the grid,
epsilon is never below the truth. Beside it stands the Gaussian mechanism without sampling, which
has a formula (Balle and Wang 2018, arXiv:1805.06530, theorem 8) and costs more than any sample; the
smaller of the two upper bounds counts.

``dp-accounting`` is optional (``pip install ".[dp]"``) and imported with the first question.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.mechanism import Mechanism, merge
from nnunetv2_federated.federation.package_versions import installed_version
from nnunetv2_federated.federation.privacy import LARGEST_EPSILON
from nnunetv2_federated.nnunet.privacy.loss_grid import as_one_step, choose_interval

__all__ = ["ACCOUNTANT", "Mechanism", "Relation", "default_delta", "epsilon_of", "noise_for"]

Relation = Literal["add_remove", "replace_one"]
"""When two sets of patients are neighbours: one has a patient more, or another one in his place."""

ACCOUNTANT = f"privacy loss distributions of dp-accounting {installed_version('dp-accounting')}"
"""Software that computes epsilon, with its version."""

SMALLEST_DELTA = 1e-8
"""Below it the rounding errors of the Fourier transforms count."""

_ROUNDING = 1e-15
"""Kept back of delta for each step: the transforms' rounding errors, found below 2e-17 a step."""
_BLOCK = 10_000
"""Steps composed at once: the library raises the number of cells to this power, exactly."""
_PRECISION = 1.005
"""Noise that is so many times smaller is too little."""
_COARSER = 16
"""How much coarser the first search's grid is."""


def default_delta(patients: int) -> float:
    """Return the usual delta of a site, ``patients ** -1.1``.

    Parameters
    ----------
    patients
        Number of patients of the site.

    Raises
    ------
    SettingsError
        If there is only one: delta has to be below 1 / patients, and mean something.
    """
    if patients < 2:
        raise SettingsError(
            f"{patients} patients: differential privacy hides a patient among others, so a site "
            "needs at least 2."
        )
    return float(patients**-1.1)


def check_delta(delta: float, patients: int) -> None:
    """Raise ``SettingsError`` unless a delta means something for so many patients.

    At 1 / patients it would allow to publish all about one patient drawn at random.
    """
    if not SMALLEST_DELTA <= delta < 1 / patients:
        raise SettingsError(
            f"delta {delta:g}: must be below 1 / {patients} patients ({1 / patients:.3g}), and at "
            f"least {SMALLEST_DELTA:g}; usual is {default_delta(patients):.3g}."
        )


def epsilon_of(
    mechanisms: Sequence[Mechanism], delta: float, *, relation: Relation = "add_remove"
) -> float:
    """Return an upper bound of epsilon for a patient on whom all the mechanisms were used.

    It takes well below a second for a mechanism, whatever its number of steps: the grid of losses
    is chosen for that. The bound is usually within 0.1 % of the truth, and never below it.

    Parameters
    ----------
    mechanisms
        Steps of all trainings, in any order; none tell nothing.
    delta
        Probability with which more may be told, at least 1e-8 and below 1.
    relation
        ``add_remove`` for the promise that is made, ``replace_one`` for the stronger one.

    Returns
    -------
    float
        Infinity where there is no bound: steps without noise, or with next to none.

    Raises
    ------
    SettingsError
        If delta is out of range, or ``dp-accounting`` is not installed.
    """
    return _epsilon(mechanisms, delta, relation, 1)


def noise_for(epsilon: float, delta: float, probability: float, steps: int) -> float:
    """Return the smallest noise multiplier that keeps a budget, for add/remove.

    Parameters
    ----------
    epsilon
        Budget, above 0 and at most 500.
    delta
        As of :func:`epsilon_of`.
    probability, steps
        As of :class:`.Mechanism`.

    Returns
    -------
    float
        Rounded up to four digits, at most 1 % above the smallest for which :func:`epsilon_of` is
        at most ``epsilon``; 0 where nothing is told.

    Raises
    ------
    SettingsError
        If a number is out of range, or ``dp-accounting`` is not installed.
    """
    if not 0 < epsilon <= LARGEST_EPSILON:
        raise SettingsError(
            f"epsilon {epsilon:g}: must be above 0 and at most {LARGEST_EPSILON:g}, which already "
            "protects nobody; 8 is much, 1 is little."
        )
    _check(delta)
    if not Mechanism(probability, 0.0, steps).tells:
        return 0.0
    enough = _library().get_sigma_gaussian(epsilon, delta) * math.sqrt(steps)

    def keeps(noise: float, grid: int) -> bool:
        mechanism = Mechanism(probability, noise, steps)
        return _epsilon([mechanism], delta, "add_remove", grid) <= epsilon

    nearly = _smallest(lambda noise: keeps(noise, _COARSER), enough)
    return _smallest(lambda noise: keeps(noise, 1), nearly)


def _smallest(keeps: Callable[[float], bool], guess: float) -> float:
    """Return nearly the smallest noise that keeps a budget, of four digits."""
    high, factor = _round_up(guess), _PRECISION
    while not keeps(high):
        high = _round_up(high * _PRECISION)
    while keeps(low := _round_up(high / factor)):
        high, factor = low, factor**2
    while high / low > _PRECISION:
        middle = _round_up(math.sqrt(low * high))
        if keeps(middle):
            high = middle
        else:
            low = middle
    return high


def _round_up(noise: float) -> float:
    """Round up to four digits."""
    digits = 3 - math.floor(math.log10(noise))
    return round(math.ceil(round(noise * 10.0**digits, 6)) / 10.0**digits, max(digits, 0))


def _epsilon(mechanisms: Sequence[Mechanism], delta: float, relation: Relation, grid: int) -> float:
    _check(delta)
    merged = [as_one_step(mechanism) for mechanism in merge(mechanisms)]
    if not merged:
        return 0.0
    distance = 2 if relation == "replace_one" else 1
    interval = choose_interval(merged, distance) * grid
    without_sampling = _without_sampling(merged, delta, distance)
    if not math.isfinite(without_sampling) or interval > 1:
        return without_sampling
    rest = delta - _ROUNDING * sum(mechanism.steps for mechanism in mechanisms)
    return min(without_sampling, _with_sampling(merged, rest, relation, interval))


def _with_sampling(
    mechanisms: Sequence[Mechanism], delta: float, relation: Relation, interval: float
) -> float:
    """Compose the distributions of the losses; infinity where that gives no bound."""
    if delta <= 0:
        return math.inf
    losses = _distributions().identity(interval)
    with np.errstate(over="ignore", divide="ignore"):  # of losses above 700, whose epsilon is inf
        for one in mechanisms:
            step = _losses_of_step(one.probability, one.noise_multiplier, relation, interval)
            blocks, rest = divmod(one.steps, _BLOCK)
            if blocks:
                losses = losses.compose(step.self_compose(_BLOCK).self_compose(blocks))
            if rest:
                losses = losses.compose(step.self_compose(rest))
        return float(losses.get_epsilon_for_delta(delta))


@functools.lru_cache(maxsize=32)
def _losses_of_step(
    probability: float, noise_multiplier: float, relation: Relation, interval: float
) -> Any:  # noqa: ANN401  # the library has no types
    neighbours = {"add_remove": "ADD_OR_REMOVE_ONE", "replace_one": "REPLACE_ONE"}[relation]
    return _distributions().from_gaussian_mechanism(
        noise_multiplier,
        value_discretization_interval=interval,
        sampling_prob=probability,
        neighboring_relation=getattr(_library().NeighboringRelation, neighbours),
    )


def _without_sampling(mechanisms: Sequence[Mechanism], delta: float, distance: int) -> float:
    """Return epsilon if every step used every patient, which is one Gaussian mechanism."""
    signal = math.hypot(*(math.sqrt(m.steps) / max(m.noise_multiplier, 1e-9) for m in mechanisms))
    if signal * distance > 1e6:  # epsilon would be above 1e11
        return math.inf
    with np.errstate(divide="ignore"):  # of a delta that is 0
        return float(_library().get_epsilon_gaussian(1 / (signal * distance), delta))


def _check(delta: float) -> None:
    if not SMALLEST_DELTA <= delta < 1:
        raise SettingsError(
            f"delta {delta:g}: must be at least {SMALLEST_DELTA:g}, and below 1 / patients."
        )


def _library() -> Any:  # noqa: ANN401  # it has no types
    try:
        import dp_accounting  # noqa: PLC0415  # optional
    except ImportError as error:
        raise SettingsError(
            'differential privacy needs dp-accounting: pip install "nnunetv2-federated[dp]".'
        ) from error
    return dp_accounting


def _distributions() -> Any:  # noqa: ANN401  # it has no types
    _library()
    from dp_accounting.pld import privacy_loss_distribution  # noqa: PLC0415  # optional

    return privacy_loss_distribution
