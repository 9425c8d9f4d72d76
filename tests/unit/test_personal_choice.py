"""How a site chooses its personal model, and what it tells of it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.history import PersonalRecord
from nnunetv2_federated.federation.messages import ALPHAS, FullValidation, PersonalReport, TrainTask
from nnunetv2_federated.federation.personal import (
    PERSONAL_FILE,
    PersonalChoice,
    choose_alpha,
    choose_by,
    describe_personal,
    interpolate,
    read_choice,
    write_choice,
)
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.federation.tasks import check_personal

FOUND = PersonalChoice(9, "Dice", {0.0: 0.5, 0.25: 0.75, 0.5: 0.75, 0.75: 0.625, 1.0: 0.25})


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [(0.0, [1, -2, 0]), (0.25, [1.5, -1, 2]), (0.5, [2, 0, 4]), (1.0, [3, 2, 8])],
)
def test_the_mean_of_two_models_is_weighted(alpha: float, expected: list[float]) -> None:
    ours, tuned = np.array([1, -2, 0], np.float32), np.array([3, 2, 8], np.float32)
    mean = interpolate(ours, tuned, alpha)
    assert mean.dtype == np.float32
    assert mean.tolist() == expected


def test_the_ends_are_the_two_models_bit_for_bit() -> None:
    chance = np.random.default_rng(0)
    ours, tuned = (chance.normal(size=1000).astype(np.float32) * 1e3 for _ in range(2))
    np.testing.assert_array_equal(interpolate(ours, tuned, 0.0), ours)
    np.testing.assert_array_equal(interpolate(ours, tuned, 1.0), tuned)


@pytest.mark.parametrize(
    ("scores", "alpha"),
    [
        ({0.0: 0.5, 0.5: 0.75, 1.0: 0.625}, 0.5),
        ({1.0: 0.75, 0.5: 0.75, 0.0: 0.75}, 0.0),  # nothing is gained: the global one
        ({0.0: 0.5, 0.5: 0.75, 0.25: 0.75}, 0.25),
        ({0.0: 0.75, 0.5: 0.5, 1.0: 0.25}, 0.0),
        ({0.0: 0.5, 0.5: None, 1.0: math.nan}, 0.0),
        ({0.0: None, 0.5: 0.9}, 0.0),  # nothing to be better than
        ({0.0: math.nan, 0.5: 0.9}, 0.0),
        ({0.0: None}, 0.0),
    ],
)
def test_the_best_share_is_chosen_and_of_equals_the_smallest(
    scores: dict[float, float | None], alpha: float
) -> None:
    assert choose_alpha(scores) == alpha


def test_what_is_told_depends_on_cases_and_privacy() -> None:
    told = PersonalReport("bern", 9, "Dice", 0.5, 0.75, 0.25)
    assert FOUND.tell("bern", min_cases=9, private=False) == told
    nothing = PersonalReport("bern")
    assert FOUND.tell("bern", min_cases=10, private=False) == nothing
    assert FOUND.tell("bern", min_cases=1, private=True) == nothing
    assert PersonalChoice(0, "", {0.0: None}).tell("bern", min_cases=1, private=False) == nothing
    assert describe_personal(told) == (
        "personal model of bern: Dice 0.5000 -> 0.7500 on 9 validation cases, with 25% of the "
        "fine-tuned weights"
    )
    assert (
        describe_personal(nothing) == "personal model of bern: done; the site tells no more of it"
    )
    assert describe_personal(PersonalReport("bern", 1, "AUROC", 0.5, 0.5, 0.0)) == (
        "personal model of bern: the global one, AUROC 0.5000 on 1 validation case; no fine-tuned "
        "model is better there"
    )
    assert asdict(PersonalRecord.of(told)) == {
        "cases": 9,
        "metric": "Dice",
        "before": 0.5,
        "after": 0.75,
        "alpha": 0.25,
    }
    assert math.isnan(PersonalRecord.of(nothing).alpha)


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha": 0.3},
        {"alpha": None},
        {"before": None},
        {"cases": 0},
        {"metric": ""},
        {"after": 0.4},  # worse than the global model, which it could have kept
        {"alpha": 0.0},  # the global model, and better than it
        {"after": 1.5},
        {"cases": "9"},
        {"case": "patient_1"},
    ],
)
def test_a_report_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    good = asdict(PersonalReport("bern", 9, "Dice", 0.5, 0.75, 0.25))
    assert PersonalReport.from_json(json.dumps(good)).alpha in ALPHAS
    with pytest.raises(SiteError, match="not a valid PersonalReport"):
        PersonalReport.from_json(json.dumps(good | changes))


def test_what_was_found_is_read_again_if_it_follows_from_the_same(tmp_path: Path) -> None:
    write_choice(tmp_path, FOUND, "abc")
    assert read_choice(tmp_path) == read_choice(tmp_path, "abc") == FOUND
    assert read_choice(tmp_path, "abd") is None
    assert read_choice(tmp_path / "nowhere") is None
    content = json.loads((tmp_path / PERSONAL_FILE).read_text())
    for damaged in ("", "[]", json.dumps(content | {"format": 2}), json.dumps({"format": 1})):
        (tmp_path / PERSONAL_FILE).write_text(damaged)
        assert read_choice(tmp_path) is None  # it is then made again


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"personal": "mixture"}, "--personal mixture: must be one of off, finetune"),
        ({"personal": "finetune", "personal_iterations": 0}, "--personal-iterations 0: must be"),
        ({"personal": "finetune", "personal_lr": -0.1}, "--personal-lr -0.1: must be above 0"),
        ({"personal": "finetune", "personal_min_cases": 0}, "--personal-min-cases 0: must be"),
        ({"personal_iterations": 50}, "--personal-iterations 50: .* give --personal finetune"),
        ({"personal_lr": 0.01}, "--personal-lr 0.01: .* give --personal finetune"),
    ],
)
def test_settings_that_cannot_be_are_one_line(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        FederationSettings(**settings)


def test_a_site_makes_a_personal_model_only_if_it_was_approved() -> None:
    with_one = FederationSettings(rounds=3, personal="finetune")
    check_personal(TrainTask(5, 0.0, 0, 0), with_one, 1)
    with pytest.raises(SiteError, match="refused server_round 3: approved is 5"):
        check_personal(TrainTask(3, 0.0, 0, 0), with_one, 1)
    with pytest.raises(SiteError, match="refused a personal model: approved is none"):
        check_personal(TrainTask(5, 0.0, 0, 0), FederationSettings(rounds=3), 1)
    with pytest.raises(SiteError, match="has trained no round"):
        check_personal(TrainTask(5, 0.0, 0, 0), with_one, 0)


def validation(cases: int, **dice: tuple[float, int]) -> FullValidation:
    """Dice by label, each with the number of cases that have one."""
    mean = {label: {"Dice": [value, float(count)]} for label, (value, count) in dice.items()}
    seen = [value for value, count in dice.values() if count]
    overall = sum(seen) / len(seen) if len(seen) == len(dice) else None
    return FullValidation("bern", cases, {"Dice": overall}, mean)


def test_painting_none_of_an_absent_label_is_no_worse_than_painting_a_few() -> None:
    """No case has label c; the global model paints some of it (Dice 0), others do not (none)."""
    found = choose_by(
        {
            0.0: validation(8, a=(0.5, 8), b=(0.75, 6), c=(0.0, 1)),
            0.5: validation(8, a=(0.75, 8), b=(0.75, 6), c=(0.0, 0)),
            1.0: validation(8, a=(0.5, 8), b=(0.5, 6), c=(0.0, 0)),
        }
    )
    assert found.scores == {0.0: 0.625, 0.5: 0.75, 1.0: 0.5}
    assert found.alpha == 0.5
    assert found.cases == 6  # those of the label that fewest cases have


def test_nothing_is_compared_without_a_label_that_all_models_have() -> None:
    found = choose_by({0.0: validation(8, a=(0.0, 1)), 1.0: validation(8, a=(0.0, 0))})
    assert (found.alpha, found.cases) == (0.0, 0)
    assert found.tell("bern", min_cases=1, private=False) == PersonalReport("bern")


def test_a_classifier_is_chosen_by_its_headline() -> None:
    found = choose_by(
        {
            0.0: FullValidation("bern", 9, {"AUROC": 0.75}, {}),
            1.0: FullValidation("bern", 9, {"AUROC": 0.875}, {}),
        }
    )
    assert (found.metric, found.alpha, found.cases) == ("AUROC", 1.0, 9)
