"""Bootstrap of a classifier's metrics: all resamples at once.

A resample is how often each case was drawn, so that a metric of it is a weighted metric of the
cases. scikit-learn's functions would have to be called a thousand times, which took longer than a
training epoch. The formulas are theirs; a test holds both together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Weights: TypeAlias = NDArray[np.float64]
"""Shape (resamples, cases): how often each case was drawn."""
Values: TypeAlias = NDArray[np.float64]
"""Shape (resamples,)."""

_NUMBERS_AT_ONCE = 2_000_000
"""Of resamples times cases: 16 MB, a few times over."""


def draw(
    targets: NDArray[np.int64], resamples: int, seed: int, patients: Sequence[int] | None = None
) -> Iterator[Weights]:
    """Draw patients with replacement, as many as there are of each class; all cases come along.

    Parameters
    ----------
    targets
        Class of each case.
    resamples
        How many.
    seed
        Of the draws.
    patients
        Number of each case's patient, who counts to the class that most of the cases have; ``None``
        if each case is a patient of its own.

    Yields
    ------
    ndarray
        As many resamples as fit into memory.
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
        Class of each case.
    probabilities
        Of all classes.
    weights
        The resamples.
    bins
        Of the calibration error.
    """
    num_classes = probabilities.shape[1]
    total = weights.sum(1)
    hits = (predicted == targets).astype(float)
    recalls, ranks, precisions, f1s, specificities = [], [], [], [], []
    for c in range(num_classes):
        true, found = (targets == c).astype(float), (predicted == c).astype(float)
        positives = weights @ true
        recalls.append(_divide(weights @ (true * found), positives))
        if num_classes == 2 and c == 0:
            continue
        f1s.append(_divide(2 * (weights @ (true * found)), positives + weights @ found))
        specificities.append(_divide(weights @ ((1 - true) * (1 - found)), total - positives))
        area, precision = _ranked(true, probabilities[:, c], weights)
        ranks.append(area)
        precisions.append(precision)
    if num_classes == 2:
        brier = np.square(probabilities[:, 1] - targets)
    else:
        brier = np.square(probabilities - np.eye(num_classes)[targets]).sum(1)
    return {
        "AUROC": _mean(ranks),
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
    """Area under the ROC curve and average precision; NaN without positives or negatives."""
    order = np.argsort(-scores_, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores_[order]) != 0])  # ties count as one
    sorted_weights = weights[:, order]
    hits = np.add.reduceat(sorted_weights * true[order], starts, axis=1)
    misses = np.add.reduceat(sorted_weights * (1 - true[order]), starts, axis=1)
    above = np.cumsum(hits, 1)
    positives, negatives = above[:, -1], misses.sum(1)
    area = (misses * (above - hits / 2)).sum(1)
    called = above + np.cumsum(misses, 1)
    precision = np.divide(above, called, out=np.zeros_like(above), where=called > 0)
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
    """Mean over the classes that have one; NaN where none has."""
    stacked = np.array(values)
    known = np.isfinite(stacked)
    return _divide(np.where(known, stacked, 0).sum(0), known.sum(0).astype(float))
