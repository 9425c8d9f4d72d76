"""Lower bounds of epsilon from guesses about canaries."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from nnunetv2_federated.nnunet.privacy.auditing import FRACTIONS, audit, lower_bound, p_value


def test_without_delta_a_guess_is_right_as_often_as_randomised_response() -> None:
    # epsilon = ln 3: right with probability 3/4; 3 of 4 or more: 4 * 27/256 + 81/256
    assert p_value(10, 4, 3, math.log(3), 0) == pytest.approx(189 / 256)
    assert p_value(4, 4, 4, math.log(3), 0) == pytest.approx(81 / 256)
    assert p_value(4, 4, 0, math.log(3), 0) == 1
    # epsilon = 0: fair coins
    assert p_value(4, 4, 4, 0, 0) == pytest.approx(1 / 16)


def test_delta_adds_the_worst_share_of_free_right_guesses() -> None:
    # epsilon = ln 3, 2 of 2 right: 9/16; P[2 > X >= 1] = 6/16, P[2 > X >= 0] / 2 = 7/32; the larger
    # of the two, 3/8, times 2 * 5 * 0.01
    assert p_value(5, 2, 2, math.log(3), 0.01) == pytest.approx(9 / 16 + 0.1 * 3 / 8)
    assert p_value(5, 2, 2, math.log(3), 0.5) == 1


def test_the_p_value_is_that_of_the_worst_free_guesses() -> None:
    """The formula is the largest tail of a sum: binomial guesses, and free ones of a given mean."""
    guesses, right, q, mean = 5, 4, 0.75, 0.3
    pmf = [math.comb(guesses, k) * q**k * (1 - q) ** (guesses - k) for k in range(guesses + 1)]
    tail = [sum(pmf[max(0, right - free) :]) for free in range(right + 1)]
    worst = 0.0
    steps = 20  # of a grid of distributions of the number of free guesses
    for shares in product(range(7), repeat=right):
        weights = [share / steps for share in shares]
        if sum(i * w for i, w in enumerate(weights, 1)) <= mean + 1e-12 and sum(weights) <= 1:
            none = 1 - sum(weights)
            free = sum(w * t for w, t in zip(weights, tail[1:], strict=True))
            worst = max(worst, none * tail[0] + free)
    assert p_value(100, guesses, right, math.log(3), mean / 200) == pytest.approx(worst)


@pytest.mark.parametrize(
    ("canaries", "guesses", "right", "delta", "bound"),
    [
        # printed in arXiv:2305.08846, appendix D and section 7
        (1000, 100, 75, 1e-4, 0.673),
        (100_000, 1510, 1439, 1e-5, 2.675),
        # all right without delta: q = 0.05 ** (1 / r), epsilon = ln(q / (1 - q))
        (1000, 1000, 1000, 0, 5.809),
        (10, 1, 1, 0, 0.0),
        # more wrong than right contradicts nothing
        (1000, 100, 40, 1e-5, 0.0),
    ],
)
def test_the_bound_is_that_of_the_paper(
    canaries: int, guesses: int, right: int, delta: float, bound: float
) -> None:
    assert lower_bound(canaries, guesses, right, delta, 0.05) == pytest.approx(bound, abs=1e-3)


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="5 right of 4 guesses of 10 canaries"):
        p_value(10, 4, 5, 1, 0)


def test_the_choice_of_the_number_of_guesses_is_paid_for() -> None:
    included = np.arange(100) % 2 == 1
    found = audit(included.astype(float), included, 0, 3.0)
    # all of 90 guesses right, at a sixth of 5 %
    q = (0.05 / len(FRACTIONS)) ** (1 / 90)
    assert (found.canaries, found.included, found.guesses, found.right) == (100, 50, 90, 90)
    assert found.bound == pytest.approx(math.log(q / (1 - q)), abs=1e-3) == found.most
    assert found.contradicts == (found.bound > 3.0)
    few = audit(included.astype(float), included, 0, 3.0, confidence=0.9999)
    assert few.bound < found.bound


def test_scores_without_a_hint_show_nothing() -> None:
    included = np.arange(100) % 2 == 1
    found = audit(np.arange(100.0), included, 1e-5, 1.0)
    assert found.bound == 0
    assert not found.contradicts
    assert found.most > 2.5


@pytest.mark.parametrize("scores", [[1.0], [1.0, math.nan]])
def test_scores_that_cannot_be_ranked_are_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="at least two canaries"):
        audit(scores, np.ones(len(scores), bool), 0, 1)


def test_a_right_training_is_contradicted_as_seldom_as_is_said() -> None:
    """Randomised response at epsilon 1, the worst there is: 150 audits, at most 5 % too high."""
    rng = np.random.default_rng(7)
    keep = 1 / (1 + math.exp(-1))
    too_high = 0
    for _ in range(150):
        included = rng.random(200) < 0.5
        told = np.where(rng.random(200) < keep, included, ~included)
        too_high += audit(told + 0.1 * rng.random(200), included, 0, 1.0).contradicts
    assert too_high <= 7
