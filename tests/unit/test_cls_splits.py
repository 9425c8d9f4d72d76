"""Folds keep a patient together, and agree with cases and patients, or are refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from cls_dataset import NAME, Folders

from nnunetv2_cls.conversion.source import Case
from nnunetv2_cls.conversion.splits import draw_folds as convert_folds
from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.splits import (
    check_fold,
    check_folds_of_nnunet,
    draw_folds,
    group_numbers,
    patients_of,
    splits_to_plan,
    unused_cases,
)


def test_folds_keep_patients_together_and_classes_in_proportion() -> None:
    classes = {f"c{i:02d}": "ill" if i % 3 == 0 else "well" for i in range(60)}
    patients = {case: str(int(case[1:]) // 2) for case in classes}

    folds = draw_folds(classes, patients)

    assert len(folds) == 5
    assert sorted(case for fold in folds for case in fold["val"]) == sorted(classes)
    for fold in folds:
        assert not {patients[c] for c in fold["train"]} & {patients[c] for c in fold["val"]}
        assert abs(Counter(classes[c] for c in fold["val"])["ill"] - 4) <= 1


def test_folds_are_those_of_a_conversion() -> None:
    classes = {f"c{i:02d}": "ab"[i % 2] for i in range(40)}
    patients = {case: f"p{int(case[1:]) // 3}" for case in classes}
    cases = [
        Case(name, patients[name], klass, Path(name), lambda: np.zeros((1, 1), np.uint8))
        for name, klass in classes.items()
    ]

    assert draw_folds(classes, patients) == convert_folds(cases)


def test_a_site_of_few_patients_gets_fewer_folds() -> None:
    classes = dict.fromkeys("abcdef", "one class")

    assert len(draw_folds(classes, dict(zip("abcdef", "112233", strict=True)))) == 3
    assert draw_folds(classes, dict.fromkeys("abcdef", "1")) == []
    assert draw_folds({}, {}) == []


def test_planning_draws_folds_by_patient_once(folders: Folders) -> None:
    classes = {f"c{i:02d}": "ab"[i % 2] for i in range(20)}
    rows = "".join(f"{case},{int(case[1:]) // 2}\n" for case in classes)
    (folders.raw / "cases.csv").write_text("case,patient\n" + rows)
    patients = patients_of(NAME)

    splits, said = splits_to_plan(folders.preprocessed, classes, patients)
    assert said == "drew 5 folds by patient and class (10 patients)"
    (folders.preprocessed / "splits_final.json").write_text(json.dumps(splits))
    assert splits_to_plan(folders.preprocessed, classes, patients) == (None, "")


def test_planning_leaves_the_folds_to_nnunet_where_no_patient_is_known(folders: Folders) -> None:
    splits, said = splits_to_plan(folders.preprocessed, dict.fromkeys("pqrstu", "a"), {})

    assert splits is None
    assert "nnU-Net will draw folds by image" in said


def test_planning_takes_the_folds_of_the_raw_dataset(folders: Folders) -> None:
    own = [{"train": ["p", "q"], "val": ["r"]}]
    (folders.raw / "splits_final.json").write_text(json.dumps(own))

    splits, said = splits_to_plan(folders.preprocessed, {**dict.fromkeys("pqrs", "a")}, {})

    assert splits == own
    assert "1 of 4 cases are in no fold" in said
    assert unused_cases(own, "pqrs", 0) == {"s"}


def test_a_table_without_patients_says_nothing(folders: Folders) -> None:
    assert patients_of(NAME) == {}
    (folders.raw / "cases.csv").write_text("case,class\np,0\n")
    assert patients_of(NAME) == {}
    (folders.raw / "cases.csv").write_text("case,patient\np,1\nq,\n")
    assert patients_of(NAME) == {"p": "1"}
    (folders.raw / "cases.csv").write_text("case,patient\np,1\np,2\n")
    with pytest.raises(ClsError, match="p has the patients 1 and 2"):
        patients_of(NAME)


@pytest.mark.parametrize("header", ["case,PatientID", "case,subject_id", "case;patient"])
def test_patients_under_another_name_are_not_passed_over(folders: Folders, header: str) -> None:
    (folders.raw / "cases.csv").write_text(f"{header}\np,1\n")
    with pytest.raises(ClsError, match=f"no column patient, but .*{header[-2:]}: name it patient"):
        patients_of(NAME)


def test_patients_are_numbered_where_one_has_several_cases() -> None:
    assert group_numbers("abcd", {"a": "Smith", "c": "Smith", "b": "Wu"}) == [0, 1, 0, 2]
    assert group_numbers("abc", {"a": "1", "b": "2"}) is None


@pytest.mark.parametrize(
    ("fold", "cases", "patients", "message"),
    [
        (1, "abc", {}, "fold 1 does not exist: .* has the folds 0 to 0"),
        (-1, "abc", {}, "fold -1 does not exist"),
        (0, "ab", {}, r"names 1 cases that the dataset does not have \(c\) in fold 0"),
        (0, "abc", {"a": "x", "c": "x"}, r"has 1 patients in training and validation .*x with c"),
    ],
)
def test_a_fold_that_does_not_agree_is_refused(
    fold: int, cases: str, patients: dict[str, str], message: str
) -> None:
    with pytest.raises(ClsError, match=message):
        check_fold([{"train": ["a", "b"], "val": ["c"]}], fold, cases, patients, Path("splits"))


def test_a_case_on_both_sides_is_refused() -> None:
    with pytest.raises(ClsError, match=r"1 cases in training and validation of fold 0 \(b\)"):
        check_fold([{"train": ["a", "b"], "val": ["b"]}], 0, "ab", {}, Path("splits"))


def test_nnunet_draws_no_folds_that_split_a_patient() -> None:
    check_folds_of_nnunet(4, "abcdef", {"a": "1", "b": "2"}, NAME)
    with pytest.raises(ClsError, match=r"1 patients have several images \(1\): nnU-Net would draw"):
        check_folds_of_nnunet(0, "abcdef", {"a": "1", "b": "1"}, NAME)
    with pytest.raises(ClsError, match="fold 5 of 6 cases does not exist"):
        check_folds_of_nnunet(5, "abcdef", {}, NAME)
