"""What a user chooses of differential privacy, and whom a site protects."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.messages import PrivacyTerms, TrainTask
from nnunetv2_federated.federation.privacy import describe_terms
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.federation.tasks import check_evaluation, check_full_validation
from nnunetv2_federated.flower.deployment.site.limits import Limits, Spent
from nnunetv2_federated.nnunet.data.dataset import Dataset
from nnunetv2_federated.nnunet.privacy.patients import patients_of_site


def test_epsilon_or_noise_makes_a_training_private() -> None:
    assert not FederationSettings().private
    assert FederationSettings(dp_epsilon=8.0).private
    assert FederationSettings(dp_noise=1.3).private
    assert not FederationSettings(dp_trainable="norm").private


def test_settings_that_were_written_can_be_read() -> None:
    for settings in (FederationSettings(), FederationSettings(dp_epsilon=3.0, dp_batch=24)):
        assert FederationSettings(**asdict(settings)) == settings


@pytest.mark.parametrize(
    ("choices", "line"),
    [
        ({"dp_epsilon": 1.0, "dp_noise": 2.0}, "--dp-epsilon 1 --dp-noise 2: each says how much"),
        ({"dp_clip": 2.0}, "--dp-clip 2.0: is for trainings with differential privacy"),
        ({"dp_validation": "clear"}, "--dp-validation clear: is for trainings with"),
        ({"dp_epsilon": 1.0, "dp_clip": 12.5}, "--dp-clip 12.5: must be above 0 and at most 12"),
        ({"dp_epsilon": 0.0}, "--dp-epsilon 0.0: must be above 0 and at most 500"),
        ({"dp_epsilon": float("inf")}, "--dp-epsilon inf: must be above 0 and at most 500"),
        ({"dp_epsilon": float("nan")}, "--dp-epsilon nan: must be above 0 and at most 500"),
        ({"dp_epsilon": 500.5}, "--dp-epsilon 500.5: must be above 0 and at most 500"),
        ({"dp_noise": -1.0}, "--dp-noise -1.0: must be a number above 0"),
        ({"dp_epsilon": 1.0, "dp_delta": 1.0}, "--dp-delta 1.0: must be above 0 and below 1"),
        ({"dp_epsilon": 1.0, "dp_batch": 0}, "--dp-batch 0: must be a whole number of at least 1"),
    ],
)
def test_bad_choices_are_one_line(choices: dict[str, object], line: str) -> None:
    with pytest.raises(SettingsError) as refused:
        FederationSettings(**choices)  # type: ignore[arg-type]
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value)


def test_validation_is_withheld_unless_it_is_said_otherwise() -> None:
    """Nothing protects validation cases: a site refuses to tell of them, whoever asks."""
    private = FederationSettings(dp_epsilon=8.0, rounds=3)
    clear = FederationSettings(dp_epsilon=8.0, rounds=3, dp_validation="clear")
    evaluation, full = TrainTask(3, 0.0, 0, 5), TrainTask(4, 0.0, 0, 0)
    assert not private.validates_received
    assert clear.validates_received
    check_evaluation(evaluation, clear, 5)
    check_full_validation(full, clear)
    with pytest.raises(SiteError, match="refused 5 validation iterations"):
        check_evaluation(evaluation, private, 5)
    with pytest.raises(SiteError, match="refused the full validation"):
        check_full_validation(full, private)


def test_a_site_with_a_budget_refuses_a_federation_without_noise() -> None:
    limits = Limits(max_epsilon=8.0)
    limits.check_federation(FederationSettings(dp_epsilon=3.0), Spent(), 0, "bern")
    with pytest.raises(
        SiteError, match=r"bern trains with differential privacy only .*max_epsilon"
    ):
        limits.check_federation(FederationSettings(), Spent(), 0, "bern")


def dataset(tmp_path: Path, table: str | None) -> Dataset:
    if table is not None:
        (tmp_path / "cases.csv").write_text(table)
    return Dataset("Dataset999_Nowhere", tmp_path, {}, {})


def test_a_patients_cases_belong_together(tmp_path: Path) -> None:
    table = "case,patient\nc1,p2\nc2,p1\nc3,p2\nc4,p3\n"
    patients = patients_of_site(dataset(tmp_path, table), ["c3", "c2", "c1"])
    assert patients.unit == "patient"
    assert patients.cases == {"p1": ("c2",), "p2": ("c1", "c3")}


@pytest.mark.parametrize("table", [None, "case,centre\nc1,a\nc2,a\n"])
def test_without_patients_each_case_is_protected_for_itself(
    tmp_path: Path, table: str | None
) -> None:
    patients = patients_of_site(dataset(tmp_path, table), ["c2", "c1"])
    assert patients.unit == "case"
    assert patients.cases == {"c1": ("c1",), "c2": ("c2",)}


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("case,patient\nc1,p1\n", r"names no patient for 1 case \(c2\)"),
        ("case,patient\nc1,p1\nc2,\n", r"names no patient for 1 case \(c2\)"),
        ("case,subject_id\nc1,p1\nc2,p2\n", "has no column patient, but subject_id"),
    ],
)
def test_patients_that_are_missing_are_refused(tmp_path: Path, table: str, line: str) -> None:
    with pytest.raises(SettingsError, match=line):
        patients_of_site(dataset(tmp_path, table), ["c1", "c2"])


def test_the_promise_of_a_site_is_one_line() -> None:
    terms = PrivacyTerms(
        "patient", 30, 0.5, 2.561, 1.0, 60, 0.0237, 2.994, 6.61, 5.871, 8.0, "PLD", "withhold"
    )
    assert describe_terms("hannover", terms) == (
        "privacy of hannover: epsilon 2.99 (replace-one 6.61) at delta 0.024 for each of its 30 "
        "patients; all trainings with them 5.87 of 8 allowed; noise 2.56 times clip 1, drawn with "
        "probability 0.5 in each of 60 iterations"
    )
    told = replace(terms, unit="case", patients=1, max_epsilon=None, told_of_validation="clear")
    assert "each of its 1 case; all trainings with them 5.87; noise" in describe_terms("x", told)
    assert "validation cases are not protected" in describe_terms("x", told)
