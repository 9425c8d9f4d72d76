"""Summaries of a validation."""

from __future__ import annotations

import json

import pytest

from nnunetv2_cls.validation import join_summaries, summarise


def test_one_class_alone_is_judged_without_nan() -> None:
    summary = summarise({"x": 0, "y": 0}, {"x": [0.9, 0.1], "y": [0.4, 0.6]}, ("a", "b"))

    assert summary["threshold"] == 0.5
    assert summary["foreground_mean"]["AUROC"] is None
    assert summary["foreground_mean"]["accuracy"] == 0.5
    json.dumps(summary, allow_nan=False)


def test_a_site_without_validation_case_has_a_summary() -> None:
    nothing = summarise({}, {}, ("a", "b"))
    one = summarise({"x": 0, "y": 1}, {"x": [0.9, 0.1], "y": [0.2, 0.8]}, ("a", "b"))

    assert nothing["cases"] == 0
    assert set(nothing["metrics"].values()) == set(nothing["intervals"].values()) == {None}
    assert nothing["metrics"].keys() == one["metrics"].keys()
    assert join_summaries([nothing, one])["metrics"] == one["metrics"]
    json.dumps(nothing, allow_nan=False)


def test_joined_summaries_keep_the_patients_of_datasets_apart() -> None:
    names = ("a", "b")
    shown = {"x": [0.9, 0.1], "y": [0.2, 0.8], "z": [0.7, 0.3]}
    one = summarise({"x": 0, "y": 1, "z": 0}, shown, names, patients=[0, 1, 0])
    two = summarise({"x": 0, "y": 1, "z": 0}, shown, names)  # nothing known: each its own

    joined = join_summaries([one, two])

    assert joined["resampled"] == "patients"
    assert [row["patient"] for row in joined["metric_per_case"]] == [0, 1, 0, 2, 3, 4]


def test_joined_summaries_choose_one_threshold_for_all() -> None:
    one = summarise({"x": 0, "y": 1}, {"x": [0.9, 0.1], "y": [0.8, 0.2]}, ("a", "b"))
    two = summarise({"x": 0, "y": 1}, {"x": [0.9, 0.1], "y": [0.2, 0.8]}, ("a", "b"))

    joined = join_summaries([one, two])

    assert joined["cases"] == 4
    assert joined["threshold"] == pytest.approx(0.15)
    assert joined["foreground_mean"]["AUROC"] == 1
