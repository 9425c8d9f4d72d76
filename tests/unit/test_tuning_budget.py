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
