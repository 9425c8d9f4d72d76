"""What crosses the wire: types that are refused."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.federation.messages import (
    FullValidation,
    SiteDescription,
    TrainReport,
    Validation,
)


@pytest.mark.parametrize(
    "changes",
    [
        {"site": 5},
        {"training_cases": "5"},
        {"declared": 5},
        {"versions": ["torch"]},
        {"versions": {"torch": 2}},
        {"device": None},
        {"free_gb": "much"},
        {"free_tb": 1},
    ],
)
def test_a_site_that_describes_itself_in_other_types_is_refused(changes: dict[str, Any]) -> None:
    good = asdict(SiteDescription("bern", 5, 2, "m", "p"))
    assert SiteDescription.from_json(json.dumps(good)).site == "bern"
    with pytest.raises(SiteError, match="not a valid SiteDescription"):
        SiteDescription.from_json(json.dumps(good | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"cases": "2"},
        {"foreground_mean": {"Dice": "good"}},
        {"mean": {"1": 0.9}},
        {"mean": {"1": {"Dice": 0.9}}},
        {"mean": {"1": {"Dice": [0.9, 2, 3]}}},
        {"mean": {"1": {"Dice": [None, 2]}}},
    ],
)
def test_a_validation_in_other_types_is_refused(changes: dict[str, Any]) -> None:
    good = asdict(FullValidation("bern", 2, {"Dice": 0.9}, {"1": {"Dice": [0.9, 2]}}))
    assert FullValidation.from_json(json.dumps(good)).cases == 2
    with pytest.raises(SiteError, match="not a valid FullValidation"):
        FullValidation.from_json(json.dumps(good | changes))


@pytest.mark.parametrize("completed", [0, -0.5, 1.5, "1"])
def test_a_site_cannot_claim_more_than_it_did(completed: object) -> None:
    nothing = Validation(0, 0.0, [], [], [])
    with pytest.raises(ValueError, match="completed"):
        TrainReport("bern", 1, 0.0, nothing, None, 0.0, completed=completed)  # type: ignore[arg-type]
