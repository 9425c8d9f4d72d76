"""Rungs, brackets, what they cost, and who goes on; numbers by hand."""

from __future__ import annotations

import pytest

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.halving import (
    Bracket,
    Halving,
    promoted,
    rung,
    with_equal_work,
)
from nnunetv2_federated.federation.settings import FederationSettings


def test_a_bracket_of_27_trials_takes_at_most_30_percent_of_their_rounds() -> None:
    bracket = Bracket(27, (2, 1, 0), 3)
    assert bracket.counts() == (27, 9, 3)
    # 27 * 10 + 9 * (30 - 10) + 3 * (90 - 30), and one more trial to each rung
    assert bracket.cost(90) == 630
    assert bracket.cost(90, extra=1) == 710
    assert bracket.cost(90, extra=1) / (27 * 90) <= 0.30


def test_the_standard_brackets_take_45_percent() -> None:
    halving = Halving("hyperband", 3, 3)
    brackets = [halving.bracket(index, 100) for index in range(4)]
    assert [(b.trials, b.exponents) for b in brackets] == [
        (9, (2, 1, 0)),
        (5, (1, 0)),
        (3, (0,)),
        (9, (2, 1, 0)),
    ]
    costs = [b.cost(9) for b in brackets[:3]]
    assert costs == [9 + 3 * 2 + 6, 5 * 3 + 6, 27]
    assert sum(costs) / (17 * 9) == pytest.approx(0.451, abs=0.001)


def test_other_brackets_and_the_last_one() -> None:
    halving = Halving("halving", 2, 3)
    assert halving.bracket(5, 100) == Bracket(4, (2, 1, 0), 2)
    assert halving.bracket(0, 3) == Bracket(3, (2, 1, 0), 2)
    assert Bracket(3, (2, 1, 0), 2).counts() == (3, 1, 1)
    assert Halving("halving", 3, 3, size=27).bracket(1, 100).trials == 27
    assert Halving("none", 3, 3).bracket(0, 10) == Bracket(1, (0,), 3)


def test_a_rung_is_a_share_of_the_trials_own_rounds() -> None:
    assert [rung(120, 3, k) for k in (2, 1, 0)] == [13, 40, 120]
    assert [rung(24, 3, k) for k in (2, 1, 0)] == [2, 8, 24]


def test_a_budget_makes_a_bracket_smaller() -> None:
    halving = Halving("halving", 3, 2)
    bracket = halving.bracket(0, 3)
    assert bracket.cost(9, extra=1) == 3 * 3 + 2 * 6
    assert halving.afforded(bracket, 9, 21, 1) == bracket
    assert halving.afforded(bracket, 9, 20, 1) == Bracket(2, (1, 0), 3)
    assert halving.afforded(bracket, 9, 9, 1) == Bracket(1, (1, 0), 3)
    assert halving.afforded(bracket, 9, 8, 1) is None


def test_the_best_go_on_and_the_first_of_equal_ones() -> None:
    values = {4: 0.5, 0: 0.1, 2: 0.7, 3: 0.5, 1: 0.5}
    assert promoted(values, 2) == {2, 1}
    assert promoted(values, 2, always=(0, 9)) == {2, 1, 0}


def test_every_trial_has_the_same_steps() -> None:
    base = FederationSettings(rounds=120)
    five = with_equal_work(base.changed(local_epochs=5), base, 250)
    assert five.rounds == 24
    half = with_equal_work(base.changed(iterations_per_epoch=125), base, 250)
    assert half.rounds == 240
    assert with_equal_work(base.changed(initial_lr=0.1), base, 250).rounds == 120
    with pytest.raises(SettingsError, match="7 local epochs of 250 iterations: the 30000 steps"):
        with_equal_work(base.changed(local_epochs=7), base, 250)


def test_rungs_below_a_round_are_refused() -> None:
    Halving("hyperband", 3, 3).check(9)
    with pytest.raises(SettingsError, match=r"--rungs 3 --reduction 3: .* less than one of 8"):
        Halving("hyperband", 3, 3).check(8)
    Halving("none", 3, 3).check(1)
