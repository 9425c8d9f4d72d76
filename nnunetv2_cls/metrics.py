"""Metrics of a classifier: scikit-learn's, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

from nnunetv2_cls.confidence_intervals import draw, scores

Probabilities = NDArray[np.float64]
"""Probability of each class, shape (cases, classes); rows sum to 1."""
Classes = NDArray[np.int64]
"""Class index of each case, shape (cases,)."""

_BINS = 15
METRICS = (
    *("AUROC", "average_precision", "accuracy", "balanced_accuracy", "F1"),
    *("sensitivity", "specificity", "brier", "calibration_error"),
)


def choose_threshold(targets: Classes, probabilities: Probabilities) -> float:
    """Choose the probability of class 1 above which a case counts as positive.

    It is the threshold with the largest sensitivity + specificity (Youden 1950) on these cases, and
    0.5 if one class is absent.

    Parameters
    ----------
    targets
        Class index of each validation case, 0 or 1.
    probabilities
        Probabilities of both classes.
    """
    if len(np.unique(targets)) < 2:
        return 0.5
    false_positive, true_positive, thresholds = sk.roc_curve(
        targets, probabilities[:, 1], drop_intermediate=False
    )
    best = int(np.argmax(true_positive - false_positive))
    following = thresholds[best + 1] if best + 1 < len(thresholds) else 0.0
    # half way to the next lower score: a threshold equal to a score depends on its last digit
    return float(np.clip((thresholds[best] + following) / 2, 0.0, 1.0))


def predict_classes(probabilities: Probabilities, threshold: float) -> Classes:
    """Return the class of each case: by the threshold for two classes, else the most probable."""
    if probabilities.shape[1] == 2:
        return (probabilities[:, 1] >= threshold).astype(np.int64)
    return np.asarray(probabilities.argmax(1), np.int64)


def calibration_error(targets: Classes, probabilities: Probabilities) -> float:
    """Compute the expected calibration error of the most probable class, over 15 equal bins.

    Guo et al. 2017, On Calibration of Modern Neural Networks, eq. 5.
    """
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == targets
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = [
        abs(correct[bins == b].mean() - confidence[bins == b].mean()) * np.mean(bins == b)
        for b in np.unique(bins)
    ]
    return float(np.sum(gaps))


def brier_score(targets: Classes, probabilities: Probabilities) -> float:
    """Compute the mean squared distance of probability and outcome (Brier 1950).

    For two classes it is that of class 1; for more, the sum over classes, as Brier defined it.
    """
    if probabilities.shape[1] == 2:
        return float(sk.brier_score_loss(targets, probabilities[:, 1]))
    outcomes = np.eye(probabilities.shape[1])[targets]
    return float(np.square(probabilities - outcomes).sum(1).mean())


def auroc(targets: Classes, probabilities: Probabilities) -> float:
    """Compute the area under the ROC curve of class 1; for more classes, the mean over classes.

    Each class is then ranked against the rest. A class that no case has, or that all cases have,
    is left out of the mean. NaN if none is left.
    """
    return _ranked(sk.roc_auc_score, targets, probabilities)


def _ranked(metric: Callable[..., float], targets: Classes, probabilities: Probabilities) -> float:
    """Return the mean of a ranking metric over the classes that :func:`score` reports."""
    num_classes = probabilities.shape[1]
    positives = [1] if num_classes == 2 else range(num_classes)
    return _mean([_one_ranked(metric, targets == c, probabilities[:, c]) for c in positives])


def _one_ranked(
    metric: Callable[..., float], outcomes: NDArray[np.bool_], probability: NDArray[np.float64]
) -> float:
    return float(metric(outcomes, probability)) if 0 < outcomes.sum() < len(outcomes) else np.nan


def _mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are defined; NaN if none is."""
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def score(targets: Classes, probabilities: Probabilities, threshold: float) -> dict[str, float]:
    """Compute every metric of ``METRICS``; NaN where a class that it needs is absent.

    For two classes, AUROC, average precision, F1, sensitivity and specificity are those of class 1.
    For more, each is the mean over the classes for which it is defined, each class against the
    rest.
    """
    if not len(targets):
        return dict.fromkeys(METRICS, float("nan"))
    predicted = predict_classes(probabilities, threshold)
    num_classes = probabilities.shape[1]
    outcomes = np.eye(num_classes, dtype=int)[targets]
    positives = [1] if num_classes == 2 else list(range(num_classes))

    def mean(metric: Callable[[int], float]) -> float:
        return _mean([metric(c) for c in positives])

    def recall(of: int, c: int) -> float:
        cases = outcomes[:, c] == of
        return float(np.mean((predicted[cases] == c) == bool(of))) if cases.any() else float("nan")

    return {
        "AUROC": auroc(targets, probabilities),
        "average_precision": _ranked(sk.average_precision_score, targets, probabilities),
        "accuracy": float(sk.accuracy_score(targets, predicted)),
        "balanced_accuracy": float(
            np.mean([np.mean(predicted[targets == c] == c) for c in np.unique(targets)])
        ),
        "F1": mean(
            lambda c: float(sk.f1_score(outcomes[:, c], predicted == c, zero_division=np.nan))
        ),
        "sensitivity": mean(lambda c: recall(1, c)),
        "specificity": mean(lambda c: recall(0, c)),
        "brier": brier_score(targets, probabilities),
        "calibration_error": calibration_error(targets, probabilities),
    }


def evaluate(
    targets: Classes,
    probabilities: Probabilities,
    classes: Sequence[str],
    threshold: float,
    *,
    resamples: int = 1000,
    seed: int = 12345,
    patients: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Compare predicted probabilities with the true classes.

    Parameters
    ----------
    targets
        True class index of each case.
    probabilities
        Probabilities of the same cases.
    classes
        Class names by index.
    threshold
        Probability of class 1 from which a case is positive. It should have been chosen on
        validation cases. It is not used for more than two classes.
    resamples
        Number of bootstrap resamples, which are stratified by class.
    seed
        Seed of the bootstrap.
    patients
        Number of each case's patient: then patients are resampled, each with all their cases.
        ``None`` to resample cases.

    Returns
    -------
    dict
        ``metrics``, ``intervals`` (95 %, percentile bootstrap), ``resampled`` (cases or patients),
        ``confusion_matrix`` (rows are the true classes), ``per_class`` (each against the rest),
        ``threshold`` and ``cases`` (their number). A value that is not defined, because a class is
        absent, is ``None``.
    """
    metrics = score(targets, probabilities, threshold)
    predicted = predict_classes(probabilities, threshold)
    resampled = [
        scores(targets, probabilities, predicted, weights, _BINS)
        for weights in (draw(targets, resamples, seed, patients) if len(targets) else ())
    ]
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (targets, predicted), 1)  # scikit-learn's refuses an empty set of cases
    hits, called, cases = confusion.diagonal(), confusion.sum(0), confusion.sum(1)
    return {
        "cases": len(targets),
        "threshold": threshold,
        "metrics": {name: _number(value) for name, value in metrics.items()},
        "resampled": "cases" if patients is None else "patients",
        "intervals": {
            name: _interval(np.concatenate([values[name] for values in resampled]))
            if np.isfinite(value)
            else None
            for name, value in metrics.items()
        },
        "confusion_matrix": confusion.tolist(),
        "per_class": {
            name: {
                "precision": _ratio(hits[c], called[c]),
                "sensitivity": _ratio(hits[c], cases[c]),
                "F1": _ratio(2 * hits[c], called[c] + cases[c]),
                "AUROC": _number(_one_ranked(sk.roc_auc_score, targets == c, probabilities[:, c])),
                "cases": int(cases[c]),
            }
            for c, name in enumerate(classes)
        },
    }


def _number(value: float) -> float | None:
    """Return a value, or ``None`` for NaN, which JSON does not have."""
    return float(value) if np.isfinite(value) else None


def _ratio(part: int, of: int) -> float | None:
    return float(part / of) if of else None


def _interval(values: NDArray[np.float64]) -> list[float] | None:
    """Return the limits of the middle 95 % of the resamples in which a metric is defined."""
    known = values[np.isfinite(values)]
    return [float(x) for x in np.percentile(known, (2.5, 97.5))] if len(known) else None
