"""Bootstrap of a classifier's metrics, computed for all resamples at once.

A resample is represented by how often it draws each case: a metric of the resample is then a
weighted metric of the cases. Calling scikit-learn once per resample would take longer than an epoch
of training. The formulas are scikit-learn's, and a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Weights: TypeAlias = NDArray[np.float64]
"""Shape (resamples, cases): how often each case was drawn."""
Values: TypeAlias = NDArray[np.float64]
"""One metric of every resample, shape (resamples,)."""

_NUMBERS_AT_ONCE = 2_000_000
"""Limit of resamples times cases in one array of weights: 16 MB, of which a few are held."""


def draw(
    targets: NDArray[np.int64], resamples: int, seed: int, patients: Sequence[int] | None = None
) -> Iterator[Weights]:
    """Draw patients with replacement, as many of each class as there are, with all their cases.

    Parameters
    ----------
    targets
        Class index of each case, shape (cases,).
    resamples
        Number of resamples.
    seed
        Seed of the draws.
    patients
        Number of each case's patient. A patient belongs to the class of most of their cases, or to
        the first of these classes. ``None`` if each case is a patient of its own.

    Yields
    ------
    ndarray
        Weights of as many resamples as fit into memory, shape (some resamples, cases).
    """
    rng = np.random.default_rng(seed)
    _, of_case = np.unique(
        np.arange(len(targets)) if patients is None else np.asarray(patients), return_inverse=True
    )
    counts = np.zeros((of_case.max() + 1, targets.max() + 1), np.int64)
    np.add.at(counts, (of_case, targets), 1)
    stratum = counts.argmax(1)
    at_once = max(1, _NUMBERS_AT_ONCE // len(targets))
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        drawn = np.zeros((size, len(stratum)))
        for klass in np.unique(stratum):
            members = np.flatnonzero(stratum == klass)
            chosen = rng.integers(len(members), size=(size, len(members)))
            chosen += np.arange(size)[:, None] * len(members)
            times = np.bincount(chosen.ravel(), minlength=size * len(members))
            drawn[:, members] = times.reshape(size, len(members))
        yield drawn[:, of_case]


def scores(
    targets: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    predicted: NDArray[np.int64],
    weights: Weights,
    bins: int,
) -> dict[str, Values]:
    """Compute the metrics of :func:`nnunetv2_cls.metrics.score` for every resample.

    Parameters
    ----------
    targets, predicted
        True and predicted class index of each case, shape (cases,).
    probabilities
        Probability of each class, shape (cases, classes).
    weights
        Number of times that each resample draws each case.
    bins
        Number of equal bins of the calibration error.

    Returns
    -------
    dict
        Metric to its value in every resample; NaN where a class that it needs was not drawn.
    """
    num_classes = probabilities.shape[1]
    total = weights.sum(1)
    hits = (predicted == targets).astype(float)
    recalls, areas, precisions, f1s, specificities = [], [], [], [], []
    for c in range(num_classes):
        true, called = (targets == c).astype(float), (predicted == c).astype(float)
        positives = weights @ true
        recalls.append(_divide(weights @ (true * called), positives))
        if num_classes == 2 and c == 0:
            continue
        f1s.append(_divide(2 * (weights @ (true * called)), positives + weights @ called))
        specificities.append(_divide(weights @ ((1 - true) * (1 - called)), total - positives))
        area, precision = _ranked(true, probabilities[:, c], weights)
        areas.append(area)
        precisions.append(precision)
    if num_classes == 2:
        brier = np.square(probabilities[:, 1] - targets)
    else:
        brier = np.square(probabilities - np.eye(num_classes)[targets]).sum(1)
    return {
        "AUROC": _mean(areas),
        "average_precision": _mean(precisions),
        "accuracy": weights @ hits / total,
        "balanced_accuracy": _mean(recalls),
        "F1": _mean(f1s),
        "sensitivity": recalls[1] if num_classes == 2 else _mean(recalls),
        "specificity": _mean(specificities),
        "brier": weights @ brier / total,
        "calibration_error": _calibration_error(targets, probabilities, weights, bins) / total,
    }


def _ranked(
    true: NDArray[np.float64], scores_: NDArray[np.float64], weights: Weights
) -> tuple[Values, Values]:
    """Return the area under the ROC curve and the average precision of every resample.

    NaN where a resample has no positive or no negative case.
    """
    order = np.argsort(-scores_, kind="stable")
    starts = np.flatnonzero(
        np.r_[True, np.diff(scores_[order]) != 0]
    )  # cases of equal score form one step of the curve
    sorted_weights = weights[:, order]
    hits = np.add.reduceat(sorted_weights * true[order], starts, axis=1)
    misses = np.add.reduceat(sorted_weights * (1 - true[order]), starts, axis=1)
    above = np.cumsum(hits, 1)
    positives, negatives = above[:, -1], misses.sum(1)
    area = (misses * (above - hits / 2)).sum(1)
    ranked = above + np.cumsum(misses, 1)
    precision = np.divide(above, ranked, out=np.zeros_like(above), where=ranked > 0)
    average = np.where(negatives > 0, (hits * precision).sum(1), np.nan)
    return _divide(area, positives * negatives), _divide(average, positives)


def _calibration_error(
    targets: NDArray[np.int64], probabilities: NDArray[np.float64], weights: Weights, bins: int
) -> Values:
    confidence = probabilities.max(1)
    gap = (probabilities.argmax(1) == targets) - confidence
    of_case = np.minimum((confidence * bins).astype(int), bins - 1)
    total = np.zeros(len(weights))
    for b in np.unique(of_case):
        total += np.abs(weights[:, of_case == b] @ gap[of_case == b])
    return total


def _divide(numerator: Values, denominator: Values) -> Values:
    missing = np.full_like(numerator, np.nan)
    return np.divide(numerator, denominator, out=missing, where=denominator > 0)


def _mean(values: Sequence[Values]) -> Values:
    """Return the mean over the classes for which a value is defined; NaN where there is none."""
    stacked = np.array(values)
    known = np.isfinite(stacked)
    return _divide(np.where(known, stacked, 0).sum(0), known.sum(0).astype(float))
