"""What a tuning may cost; numbers by hand."""

from __future__ import annotations

import pytest

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.history import RoundRecord, RoundSeconds
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.federation.tuning_budget import Budget, Cost, bytes_of_round


def test_the_cost_of_a_trial() -> None:
    records = [
        RoundRecord(round=0, bytes_down=10, bytes_up=20, seconds=RoundSeconds(round=2.0)),
        RoundRecord(round=1, bytes_down=10, bytes_up=21),
    ]
    assert Cost.of(records, 2.5) == Cost(5.0, 61, 2.0)
    assert Cost(1, 2, 3) + Cost(1, 1, 1) == Cost(2, 3, 4)


def test_the_bytes_of_a_round() -> None:
    base = FederationSettings()
    assert bytes_of_round(base, 1000, 3) == 2 * 4 * 1000 * 3
    half = base.changed(transport_dtype="bfloat16", sites_per_round=2)
    assert bytes_of_round(half, 1000, 3) == 2 * 2 * 1000 * 2


@pytest.mark.parametrize(
    ("budget", "problem"),
    [
        (Budget(rounds=119), "--budget-rounds 119: allows no trial; .* alone has 120 rounds"),
        (Budget(gigabytes=2.9), "--budget-gb 2.9: allows no trial; .* alone sends 3 GB"),
    ],
)
def test_a_budget_that_allows_no_trial_is_refused(budget: Budget, problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        budget.check(Cost(120, 3_000_000_000), 120)


def test_a_limit_is_reached_or_would_be_passed() -> None:
    Budget(rounds=120, gigabytes=3.0).check(Cost(120, 3_000_000_000), 120)
    assert Budget().exceeded(Cost(1e9, 10**15, 1e9), Cost()) is None
    limited = Budget(gigabytes=1, hours=2)
    assert limited.exceeded(Cost(0, 10**9 - 5, 7199), Cost(0, 5)) is None
    passed = limited.exceeded(Cost(0, 10**9 - 5, 0), Cost(0, 6))
    assert passed == "--budget-gb 1: 1 are spent"
    assert Budget(rounds=12).exceeded(Cost(8), Cost(4)) is None
    assert Budget(rounds=12).exceeded(Cost(8), Cost(4.5)) == "--budget-rounds 12: 8 are spent"
    assert limited.exceeded(Cost(0, 0, 7200), Cost()) == "--budget-hours 2: 2 are spent"


def test_what_is_kept_for_other_folds_is_not_for_trials() -> None:
    kept = Cost(240, 6_000_000_000, 0.0)
    Budget(rounds=360, gigabytes=9.0, kept=kept).check(Cost(120, 3_000_000_000), 120)
    for budget, problem in (
        (Budget(rounds=359, kept=kept), "alone has 120 rounds, and --nested 240."),
        (Budget(gigabytes=8.9, kept=kept), "alone sends 3 GB, and --nested 6 GB."),
    ):
        with pytest.raises(SettingsError, match=problem):
            budget.check(Cost(120, 3_000_000_000), 120)
    budget = Budget(rounds=360, kept=kept)
    assert budget.exceeded(Cost(80), Cost(40)) is None
    passed = "--budget-rounds 360: 80 are spent, 240 are for --nested"
    assert budget.exceeded(Cost(80), Cost(41)) == passed


def test_pieces_are_afforded_in_their_order() -> None:
    pieces = [Cost(4), Cost(4), Cost(2)]
    assert Budget().affords(Cost(1e9), pieces) == (3, None)
    assert Budget(rounds=18).affords(Cost(8), pieces) == (3, None)
    # the third would fit where the second does not, but is not trained before it
    stopped = "--budget-rounds 15: 12 are spent"
    assert Budget(rounds=15).affords(Cost(8), pieces) == (1, stopped)
    assert Budget(rounds=10).affords(Cost(), []) == (0, None)
