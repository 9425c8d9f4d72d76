"""What a site tells of its cases' metrics: mean and variance over patients, never single values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nnunetv2_federated.federation.evaluation import Metric, Moments, MomentsOfLabels

Values = NDArray[np.float64]
"""A metric of each case, NaN where it is not defined, shape (cases,)."""
Units = NDArray[np.int64]
"""Number of each case's patient, shape (cases,)."""
OfCases = Mapping[str, Mapping[Metric, Values]]
"""Values by label and metric."""


def moments(
    values: Values, units: Units, min_cases: int, quantiles: Sequence[float] = ()
) -> Moments | None:
    """Summarise a metric; ``None`` if fewer than ``min_cases`` patients have a value.

    The mean is over cases. The variance is that of the patients' contributions to it: for a patient
    the sum of deviations from the mean, times patients per case. Divided by the number of patients
    it is the squared standard error of the mean, by linearisation of the ratio of two sums (Cochran
    1977, Sampling Techniques, section 6.3). Where each patient has one case, it is the usual
    variance.

    Parameters
    ----------
    values
        The metric of each case.
    units
        Patient of each case.
    min_cases
        Fewest patients.
    quantiles
        Quantiles over patients, of the mean of each patient's cases.
    """
    known = np.isfinite(values)
    if len(np.unique(units[known])) < min_cases:
        return None
    mean = math.fsum(values[known]) / int(known.sum())
    position = np.unique(units[known], return_inverse=True)[1]
    told = _quantiles(values[known], position, quantiles, min_cases)
    deviations = np.bincount(position, values[known] - mean).astype(np.float64)
    return _summarise(mean, int(known.sum()), deviations, told)


def _summarise(
    mean: float, cases: int, deviations: Values, quantiles: list[float] | None
) -> Moments:
    """Build moments from the sum of deviations of each patient."""
    patients = len(deviations)
    contributions = deviations * (patients / cases)
    variance = math.fsum(contributions**2) / (patients - 1)
    return Moments(cases, patients, mean, variance, quantiles)


def moments_of_labels(
    values: OfCases, units: Units, min_cases: int, quantiles: Sequence[float] = ()
) -> MomentsOfLabels:
    """Summarise each label and metric, and the mean over labels.

    Parameters
    ----------
    values, units, min_cases, quantiles
        As of :func:`moments`.
    """
    labels = {
        label: {m: moments(v, units, min_cases, quantiles) for m, v in metrics.items()}
        for label, metrics in values.items()
    }
    names: dict[Metric, None] = dict.fromkeys(m for metrics in values.values() for m in metrics)
    told = {
        name: [values[label][name] for label in labels if labels[label][name] is not None]
        for name in names
    }
    return MomentsOfLabels(labels, {name: _foreground(told[name], units) for name in names})


def _foreground(of_labels: Sequence[Values], units: Units) -> Moments | None:
    """Summarise the mean over labels, of labels that are told.

    It is the mean of the labels' means, as in nnU-Net's ``foreground_mean``.
    """
    if not of_labels:
        return None
    means, cases = [], np.zeros(len(units), bool)
    deviations = np.zeros(int(units.max()) + 1)
    for values in of_labels:
        known = np.isfinite(values)
        cases |= known
        means.append(math.fsum(values[known]) / int(known.sum()))
        share = 1 / (int(known.sum()) * len(of_labels))
        deviations += share * np.bincount(
            units[known], values[known] - means[-1], minlength=len(deviations)
        )
    count = int(cases.sum())
    present = np.unique(units[cases])
    return _summarise(math.fsum(means) / len(means), count, deviations[present] * count, None)


def differences(
    first: OfCases, second: OfCases, units: Units, min_cases: int
) -> dict[str, dict[Metric, Values]]:
    """Return the paired differences of two models, first minus second.

    A label is left out where only one of the models has a value for some patients, and these are
    fewer than ``min_cases``: from the sums of both and of their differences, the values of these
    patients would follow.
    """
    paired: dict[str, dict[Metric, Values]] = {}
    for label, metrics in first.items():
        paired[label] = {}
        for name, ours in metrics.items():
            theirs = second[label][name]
            alone = len(np.unique(units[np.isfinite(ours) != np.isfinite(theirs)]))
            told = alone == 0 or alone >= min_cases
            paired[label][name] = ours - theirs if told else np.full(len(ours), np.nan)
    return paired


def enough_for_quantiles(patients: int, quantiles: Sequence[float], min_cases: int) -> bool:
    """Whether at least ``min_cases`` patients are below, above and between quantiles.

    A quantile is one patient's value, or between two. With fewer patients around it, that value
    could be told whose it is, or follow from mean, variance and the other quantiles.
    """
    edges = [0.0, *quantiles, 1.0]
    gaps = [high - low for low, high in itertools.pairwise(edges)]
    # a tolerance: 20 * (0.75 - 0.5) is 5
    return patients * min(gaps) >= min_cases - 1e-9


def _quantiles(
    values: Values, position: Units, quantiles: Sequence[float], min_cases: int
) -> list[float] | None:
    of_patients = np.bincount(position, values) / np.bincount(position)
    if not quantiles or not enough_for_quantiles(len(of_patients), quantiles, min_cases):
        return None
    return [float(q) for q in np.quantile(of_patients, quantiles)]


def units_of(names: Sequence[str]) -> Units:
    """Return a number for each name, from 0 in alphabetical order, the same for the same name."""
    return np.unique(list(names), return_inverse=True)[1].astype(np.int64)


def classes_are_large(classes: Sequence[int], units: Units, min_cases: int) -> bool:
    """Whether each class that occurs has at least ``min_cases`` patients.

    With one patient of a class, the area under the ROC curve is the rank of that patient.
    """
    of_cases = np.asarray(classes)
    return all(len(np.unique(units[of_cases == c])) >= min_cases for c in np.unique(of_cases))
