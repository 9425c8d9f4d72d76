"""Members of a training, told from others by their losses."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from nnunetv2_federated.federation.errors import CheckpointError
from nnunetv2_federated.federation.privacy_attacks import (
    CanaryAudit,
    MembershipTest,
    read_attack,
    write_attack,
)
from nnunetv2_federated.nnunet.privacy.membership import (
    calibrate,
    mean_by_patient,
    membership_test,
)
from nnunetv2_federated.report.privacy_attacks import (
    canary_section,
    canary_verdict,
    membership_section,
    membership_verdict,
)


def attack(members: list[float], others: list[float]) -> MembershipTest:
    return membership_test(np.array(members), np.array(others), calibrated=False, unit="patient")


def test_members_have_smaller_losses() -> None:
    # pairs in which the member's loss is smaller: 4 + 4 + 2, and of the tie at 0.4 a half
    found = attack([0.1, 0.2, 0.4], [0.3, 0.4, 0.5, 0.6])
    assert (found.members, found.others) == (3, 4)
    assert found.auc == pytest.approx(10.5 / 12)
    # no false alarm up to a loss below 0.3: two of three
    assert found.found_at_1 == found.found_at_10 == pytest.approx(2 / 3)
    assert found.low < found.auc <= found.high <= 1
    assert attack([0.3, 0.4, 0.5, 0.6], [0.1, 0.2, 0.4]).auc == pytest.approx(1.5 / 12)


def test_an_area_is_that_of_scikit_learn_and_its_interval_has_the_usual_width() -> None:
    rng = np.random.default_rng(3)
    members, others = rng.normal(0, 1, 150), rng.normal(0.8, 1, 100)
    found = attack(list(members), list(others))
    true = [1] * 150 + [0] * 100
    assert found.auc == pytest.approx(roc_auc_score(true, -np.concatenate([members, others])))
    # standard error of Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747
    a = found.auc
    pairs = 149 * (a / (2 - a) - a**2) + 99 * (2 * a**2 / (1 + a) - a**2)
    error = math.sqrt((a * (1 - a) + pairs) / (150 * 100))
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert found.p_value < 1e-6


def test_at_a_rate_of_false_alarms_the_best_threshold_counts() -> None:
    # of 20 others one may be a false alarm at 10 %, two at 10 % as well, none at 1 %
    others = [0.15, 0.35, 0.55, *np.linspace(1, 2, 17)]
    found = attack([0.1, 0.2, 0.3, 0.4, 0.5, 3.0], others)
    assert found.found_at_1 == pytest.approx(1 / 6)
    assert found.found_at_10 == pytest.approx(5 / 6)


def test_a_patient_is_the_mean_of_all_cases() -> None:
    losses = {"a1": 1.0, "b": 5.0, "a2": 3.0, "c": 7.0}
    assert mean_by_patient(losses, {"a": ["a1", "a2"], "b": ["b"]}).tolist() == [2.0, 5.0]


def test_what_is_hard_for_any_model_is_taken_out() -> None:
    assert calibrate({"a": 0.5, "b": 2.0}, {"b": 1.5, "a": 1.0}) == {"a": -0.5, "b": 0.5}


def test_one_patient_is_too_few() -> None:
    with pytest.raises(ValueError, match="1 members and 2 others"):
        attack([0.1], [0.2, 0.3])


REMEMBERS = MembershipTest(
    members=40, others=10, auc=0.8, low=0.7, high=0.9, p_value=0.001,
    found_at_1=0.1, found_at_10=0.45, calibrated=True, unit="patient",
)  # fmt: skip
KEPT = CanaryAudit(
    canaries=1000, included=507, guesses=100, right=92, bound=1.6, most=5.16, delta=1e-5,
    confidence=0.95, epsilon=4.38,
)  # fmt: skip


def test_a_verdict_says_what_is_not_shown() -> None:
    assert membership_verdict(REMEMBERS) == (
        "This attack tells patients of the training from others (AUC 0.80, 95 % interval 0.70 to "
        "0.90, 40 patients of the training and 10 others): the model remembers some. It finds 45% "
        "of them with at most 10 % false alarms."
    )
    assert "An area up to 0.90, or a better attack, is not excluded." in membership_verdict(
        replace(REMEMBERS, p_value=0.06)
    )
    assert canary_verdict(KEPT) == (
        "Epsilon is at least 1.60, with 95% confidence, which does not contradict 4.38."
    )
    assert "nothing could have contradicted this epsilon" in canary_verdict(
        replace(KEPT, epsilon=6)
    )
    assert canary_verdict(replace(KEPT, epsilon=1.5)).startswith(
        "Epsilon is at least 1.60 and not 1.50, with 95% confidence"
    )


def test_a_section_has_the_numbers_and_escapes_the_name() -> None:
    section = membership_section("[x](y) fold_0", REMEMBERS)
    assert r"| \[x\](y) fold_0 | 40 patients | 10 | 0.800 | 0.700 to 0.900 |" in section
    assert "| 1000 | 507 | 100 | 92 | 1.60 | 4.38 | 1e-05 | 5.16 |" in canary_section(KEPT)


@pytest.mark.parametrize("found", [REMEMBERS, KEPT])
def test_what_was_found_survives_its_file(
    found: MembershipTest | CanaryAudit, tmp_path: Path
) -> None:
    write_attack(tmp_path / "found.json", found)
    assert read_attack(tmp_path / "found.json", type(found)) == found


@pytest.mark.parametrize("text", ["", "{}", '{"auc": "high"}'])
def test_a_damaged_file_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "membership.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"membership\.json cannot be read"):
        read_attack(tmp_path / "membership.json", MembershipTest)
