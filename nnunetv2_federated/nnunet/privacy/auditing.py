"""Lower bound of epsilon from one training: Steinke, Nasr and Jagielski 2023, arXiv:2305.08846.

Canaries take part in a training or not, each by a fair coin of its own. Whoever sees what the
training released guesses the coins of some of them. If the training is differentially private, few
of the guesses are right; more right guesses contradict it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from scipy.stats import binom

from nnunetv2_federated.federation.privacy_attacks import CanaryAudit

FRACTIONS = (0.02, 0.05, 0.1, 0.2, 0.5, 0.9)
"""Shares of the canaries that are guessed. The best bound of these six counts, and each is computed
with a sixth of the probability of error (Bonferroni), so that the choice is paid for."""

_RESOLUTION = 1e-4
"""Largest error of a bound, which is rounded down."""


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Bound the probability of so many right guesses by chance in an (epsilon, delta) training.

    Theorem 5.2 and appendix D of arXiv:2305.08846. With ``delta`` 0 a guess is right with
    probability ``q = 1 / (1 + exp(-epsilon))`` at most, whatever the others are, so that the number
    of right ones is at most binomial: ``P[Binomial(guesses, q) >= right]``. With ``delta`` at most
    ``2 * canaries * delta`` guesses in expectation are right besides, and the worst distribution of
    these adds ``2 * canaries * delta * max_i P[right > Binomial(guesses, q) >= right - i] / i``.

    Parameters
    ----------
    canaries
        Number of canaries, each included with probability 1/2.
    guesses
        Number of canaries whose inclusion was guessed.
    right
        Number of right guesses.
    epsilon, delta
        Privacy that is to be contradicted, of adding or removing one canary.

    Returns
    -------
    float
        At most 1.

    Raises
    ------
    ValueError
        Unless ``0 <= right <= guesses <= canaries``.
    """
    if not 0 <= right <= guesses <= canaries:
        raise ValueError(f"{right} right of {guesses} guesses of {canaries} canaries")
    q = expit(epsilon)
    tail = float(binom.sf(right - 1, guesses, q))
    if delta == 0 or right == 0:
        return tail
    more = np.arange(1, right + 1)
    worst = np.max((binom.sf(right - 1 - more, guesses, q) - tail) / more)
    return min(1.0, tail + 2 * canaries * delta * float(worst))


def lower_bound(canaries: int, guesses: int, right: int, delta: float, error: float) -> float:
    """Return the largest epsilon that the guesses contradict; 0 if they contradict none.

    Parameters
    ----------
    canaries, guesses, right, delta
        As of :func:`p_value`.
    error
        Probability with which a right epsilon may be contradicted.
    """
    low, high = 0.0, 1.0
    while p_value(canaries, guesses, right, high, delta) < error:
        low, high = high, 2 * high
    while high - low > _RESOLUTION:
        middle = (low + high) / 2
        if p_value(canaries, guesses, right, middle, delta) < error:
            low = middle
        else:
            high = middle
    return low


def audit(
    scores: ArrayLike,
    included: NDArray[np.bool_],
    delta: float,
    epsilon: float,
    confidence: float = 0.95,
) -> CanaryAudit:
    """Guess which canaries took part, and bound epsilon by how many guesses are right.

    Those with the highest scores are guessed to have taken part, as many of those with the lowest
    not to. How many is tried for each of :data:`FRACTIONS`.

    Parameters
    ----------
    scores
        How much each canary seems to have taken part, shape (canaries,), seen from what was
        released alone.
    included
        Whether each took part, by a fair coin of its own, shape (canaries,).
    delta
        Delta of the accounting.
    epsilon
        Epsilon of the accounting, which is noted beside the bound.
    confidence
        Probability with which all bounds hold together.

    Raises
    ------
    ValueError
        If there are fewer than two canaries, or a score is not finite.
    """
    values = np.asarray(scores, np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        raise ValueError("at least two canaries are needed, with scores that are finite")
    count = len(values)
    ranked = included[np.argsort(values, kind="stable")]
    error = (1 - confidence) / len(FRACTIONS)
    found, most = [], 0.0
    for half in _halves(count):
        right = int(np.sum(ranked[count - half :])) + int(np.sum(~ranked[:half]))
        found.append((lower_bound(count, 2 * half, right, delta, error), 2 * half, right))
        most = max(most, lower_bound(count, 2 * half, 2 * half, delta, error))
    bound, guesses, right = max(found)
    return CanaryAudit(
        canaries=count,
        included=int(np.sum(included)),
        guesses=guesses,
        right=right,
        bound=bound,
        most=most,
        delta=delta,
        confidence=confidence,
        epsilon=epsilon,
    )


def _halves(count: int) -> list[int]:
    """Return half the number of guesses of each fraction, at least one."""
    return [max(1, round(fraction * count / 2)) for fraction in FRACTIONS]
