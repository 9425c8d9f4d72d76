"""Metrics of a classifier, with numbers by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nnunetv2_cls.metrics import (
    brier_score,
    calibration_error,
    choose_threshold,
    evaluate,
    score,
)


def two_classes(*positive: float) -> np.ndarray:
    return np.array([[1 - p, p] for p in positive])


def test_metrics_by_hand() -> None:
    targets = np.array([0, 0, 0, 1, 1])
    found = score(targets, two_classes(0.1, 0.4, 0.8, 0.7, 0.9), 0.5)

    # of 6 pairs (positive, negative) one is in the wrong order: 0.7 < 0.8
    assert found["AUROC"] == pytest.approx(5 / 6)
    # from the top: 0.9 hit, 0.8 miss, 0.7 hit: 1/2 * 1 + 1/2 * 2/3
    assert found["average_precision"] == pytest.approx(5 / 6)
    assert found["accuracy"] == pytest.approx(4 / 5)
    assert found["sensitivity"] == 1
    assert found["specificity"] == pytest.approx(2 / 3)
    assert found["balanced_accuracy"] == pytest.approx(5 / 6)
    assert found["F1"] == pytest.approx(4 / 5)  # 2 tp / (2 tp + 1 fp)
    assert found["brier"] == pytest.approx((0.01 + 0.16 + 0.64 + 0.09 + 0.01) / 5)


def test_the_threshold_counts() -> None:
    found = score(np.array([0, 1]), two_classes(0.3, 0.4), 0.35)

    assert (found["accuracy"], found["sensitivity"], found["specificity"]) == (1, 1, 1)


def test_metrics_of_three_classes_by_hand() -> None:
    targets = np.array([0, 1, 2, 2])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.6, 0.2], [0.1, 0.2, 0.7], [0.5, 0.1, 0.4]])

    found = score(targets, probabilities, 0.5)

    assert found["accuracy"] == 3 / 4
    assert found["sensitivity"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert found["specificity"] == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert found["F1"] == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)
    assert found["AUROC"] == 1  # each class ranks its own cases first


def test_a_class_that_is_absent_has_no_auroc() -> None:
    found = score(np.array([1, 1]), two_classes(0.4, 0.6), 0.5)

    assert np.isnan(found["AUROC"])
    assert np.isnan(found["specificity"])
    assert found["accuracy"] == 0.5


def test_calibration_error_by_hand() -> None:
    # two of four right at confidence 0.9: |0.5 - 0.9|; one case, right, at 0.6: |1 - 0.6|
    probabilities = two_classes(0.9, 0.9, 0.9, 0.9, 0.6)
    targets = np.array([1, 1, 0, 0, 1])

    assert calibration_error(targets, probabilities) == pytest.approx(0.8 * 0.4 + 0.2 * 0.4)


def test_brier_of_several_classes_is_the_sum_over_classes() -> None:
    assert brier_score(np.array([2]), np.array([[0.2, 0.3, 0.5]])) == pytest.approx(
        0.04 + 0.09 + 0.25
    )


def test_the_threshold_lies_between_the_scores_it_separates() -> None:
    assert choose_threshold(np.array([0, 0, 1, 1]), two_classes(0.1, 0.6, 0.8, 0.9)) == (
        pytest.approx(0.7)
    )
    assert choose_threshold(np.array([1, 1]), two_classes(0.1, 0.6)) == 0.5


def test_intervals_hold_the_metric_and_shrink_with_cases() -> None:
    rng = np.random.default_rng(0)

    def width(cases: int) -> float:
        targets = np.arange(cases) % 2
        probabilities = two_classes(*np.clip(targets * 0.3 + rng.uniform(0, 0.7, cases), 0, 1))
        judged = evaluate(targets, probabilities, ("a", "b"), 0.5, resamples=100)
        low, high = judged["intervals"]["AUROC"]
        assert low <= judged["metrics"]["AUROC"] <= high
        return high - low

    assert width(400) < width(20)


def test_intervals_are_wider_when_images_come_in_pairs_of_a_patient() -> None:
    rng = np.random.default_rng(3)
    targets = np.repeat(np.arange(30) % 2, 2)
    scores = np.repeat(np.clip(0.3 * targets[::2] + rng.uniform(0, 0.7, 30), 0, 1), 2)

    def width(patients: list[int] | None) -> float:
        judged = evaluate(targets, two_classes(*scores), ("a", "b"), 0.5, patients=patients)
        assert judged["resampled"] == ("patients" if patients else "cases")
        low, high = judged["intervals"]["AUROC"]
        return high - low

    # the second image of a patient tells nothing new: as wide as with half of the images
    assert width([i // 2 for i in range(60)]) > 1.2 * width(None)


def test_an_absent_class_leaves_the_others_judged() -> None:
    targets = np.array([0, 0, 2, 2])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.2, 0.6], [0.1, 0.3, 0.6], [0.3, 0.0, 0.7]])

    judged = evaluate(targets, probabilities, ("a", "b", "c"), 0.5, resamples=10)

    # a against c: of 4 pairs 3 are in order by the score of a, 3.5 by that of c
    assert judged["per_class"]["a"]["AUROC"] == 0.75
    assert judged["per_class"]["b"] == {
        "precision": None,  # never predicted
        "sensitivity": None,
        "F1": None,
        "AUROC": None,
        "cases": 0,
    }
    assert judged["per_class"]["c"]["AUROC"] == 0.875
    assert judged["metrics"]["AUROC"] == pytest.approx((0.75 + 0.875) / 2)
    json.dumps(judged, allow_nan=False)


def test_confusion_matrix_has_true_classes_in_rows() -> None:
    judged = evaluate(np.array([0, 0, 1]), two_classes(0.9, 0.1, 0.9), ("a", "b"), 0.5, resamples=2)

    assert judged["confusion_matrix"] == [[1, 1], [0, 1]]
    assert judged["per_class"]["b"] == {
        "precision": 0.5,
        "sensitivity": 1.0,
        "F1": pytest.approx(2 / 3),
        "AUROC": 0.75,  # of the pairs one is in order and one is equal
        "cases": 1,
    }
