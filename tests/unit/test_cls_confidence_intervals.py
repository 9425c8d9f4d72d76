"""Bootstrap of all resamples at once, against scikit-learn on each."""

from __future__ import annotations

import numpy as np
import pytest

from nnunetv2_cls import confidence_intervals
from nnunetv2_cls.metrics import evaluate, predict_classes, score


def test_resamples_at_once_score_as_scikit_learn_does() -> None:
    rng = np.random.default_rng(5)
    for classes in (2, 3):
        targets = rng.integers(0, classes, 40)
        raw = rng.integers(1, 5, (40, classes)).astype(float)  # many ties
        probabilities = raw / raw.sum(1, keepdims=True)
        predicted = predict_classes(probabilities, 0.4)
        weights = rng.integers(0, 3, (6, 40)).astype(float)
        weights[0] = 1  # the cases themselves
        weights[1] = targets == 1  # one class only
        weights[2] = targets != 1

        found = confidence_intervals.scores(targets, probabilities, predicted, weights, 15)

        for i, times in enumerate(weights.astype(int)):
            cases = np.repeat(np.arange(40), times)
            expected = score(targets[cases], probabilities[cases], 0.4)
            for name, value in expected.items():
                assert found[name][i] == pytest.approx(value, abs=1e-12, nan_ok=True), name


def test_a_resample_draws_patients_with_all_their_images() -> None:
    targets = np.array([0, 0, 0, 1, 1, 1, 0])
    patients = [7, 7, 2, 5, 5, 3, 3]  # 3 counts to class 0: as many images, and the lower index

    (weights,) = confidence_intervals.draw(targets, 200, 0, patients)

    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 4]).all()
    assert (weights[:, 5] == weights[:, 6]).all()
    assert (weights[:, 0] + weights[:, 2] + weights[:, 5] == 3).all()  # three patients of class 0
    assert (weights[:, 3] == 1).all()  # one patient of class 1
    assert weights[:, 0].mean() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("images", [1, 3])
def test_intervals_are_those_of_scikit_learn_on_each_resample(classes: int, images: int) -> None:
    rng = np.random.default_rng(11)
    names = [str(c) for c in range(classes)]
    patients = np.repeat(np.arange(12), images)
    targets = np.repeat(np.r_[np.zeros(8, int), np.arange(4) % classes], images)
    raw = rng.integers(1, 4, (len(targets), classes)).astype(float)  # many ties
    probabilities = raw / raw.sum(1, keepdims=True)
    groups = patients.tolist() if images > 1 else None

    judged = evaluate(targets, probabilities, names, 0.4, resamples=60, seed=3, patients=groups)

    resamples = np.concatenate(list(confidence_intervals.draw(targets, 60, 3, groups)))
    plain = [
        score(targets[cases], probabilities[cases], 0.4)
        for times in resamples.astype(int)
        for cases in [np.repeat(np.arange(len(targets)), times)]
    ]
    for name, interval in judged["intervals"].items():
        values = np.array([metrics[name] for metrics in plain])
        expected = np.percentile(values[np.isfinite(values)], (2.5, 97.5))
        assert interval == pytest.approx(expected, abs=1e-12), name


def test_the_number_of_resamples_is_an_argument() -> None:
    targets = np.arange(10) % 2
    for resamples in (1, 7):
        assert (
            sum(len(weights) for weights in confidence_intervals.draw(targets, resamples, 0))
            == resamples
        )

    positive = np.linspace(0.1, 0.9, 10)
    probabilities = np.stack([1 - positive, positive], 1)
    (low, high), (lower, higher) = (
        evaluate(targets, probabilities, ("a", "b"), 0.5, **options)["intervals"]["accuracy"]
        for options in ({"resamples": 1}, {})
    )
    assert low == high  # of one resample
    assert lower < higher
