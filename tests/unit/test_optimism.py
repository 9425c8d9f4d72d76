"""What a score loses on other folds; numbers by hand, exact in binary."""

from __future__ import annotations

import math

import pytest

from nnunetv2_federated.federation.optimism import FoldScore, Optimism

CHOSEN = FoldScore(0, found=0.875, default=0.75, noise=0.01)


def test_the_default_tells_harder_folds_from_what_was_chosen_by_chance() -> None:
    others = (FoldScore(1, 0.75, 0.6875, 0.03), FoldScore(2, 0.625, 0.6875, 0.04))
    optimism = Optimism(CHOSEN, others)
    assert (optimism.elsewhere.found, optimism.elsewhere.default) == (0.6875, 0.6875)
    assert optimism.elsewhere.difference == 0.0
    assert optimism.elsewhere.noise == pytest.approx(0.025)  # 0.05 / 2
    assert optimism.found == 0.1875
    assert optimism.default == 0.0625  # the other folds are harder by so much
    assert optimism.difference == 0.125  # all that the found setting was better by


def test_noise_that_is_not_known_stays_so() -> None:
    unknown = Optimism(CHOSEN, (FoldScore(1, 0.0, 0.5, math.nan),))
    assert math.isnan(unknown.elsewhere.noise)
    assert unknown.found == 0.875
