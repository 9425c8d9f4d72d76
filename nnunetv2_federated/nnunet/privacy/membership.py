"""Membership inference: whether a model's losses tell its training patients from others.

A model that has learnt its training cases by heart has a smaller loss on them: the threshold attack
of Yeom et al. 2018, arXiv:1709.01604. What is easy for any model is easy for this one, too; a
reference model that was trained on none of the cases takes that out (Watson et al. 2022,
arXiv:2111.08440).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, mannwhitneyu, rankdata
from sklearn.metrics import roc_curve

from nnunetv2_federated.federation.privacy_attacks import MembershipTest

RESAMPLES = 2000
"""Bootstrap samples of the interval."""

_SEED = 12345
_AT_ONCE = 100
"""Bootstrap samples that are in memory together."""


def mean_by_patient(
    losses: Mapping[str, float], cases: Mapping[str, Sequence[str]]
) -> NDArray[np.float64]:
    """Return the mean loss of each patient, shape (patients,).

    Parameters
    ----------
    losses
        Loss of each case.
    cases
        Cases of each patient.
    """
    return np.array([np.mean([losses[case] for case in own]) for own in cases.values()])


def calibrate(losses: Mapping[str, float], reference: Mapping[str, float]) -> dict[str, float]:
    """Return each loss minus that of a reference model on the same case."""
    return {case: loss - reference[case] for case, loss in losses.items()}


def membership_test(
    members: NDArray[np.float64],
    others: NDArray[np.float64],
    *,
    calibrated: bool,
    unit: str,
) -> MembershipTest:
    """Tell members from others by a threshold of their loss.

    Parameters
    ----------
    members, others
        Loss of each patient that was trained on, and of each that was not; shapes (members,) and
        (others,).
    calibrated, unit
        As of :class:`.MembershipTest`.

    Raises
    ------
    ValueError
        If there are fewer than two of either.
    """
    if min(len(members), len(others)) < 2:
        raise ValueError(f"{len(members)} members and {len(others)} others: needs two of each")
    scores, rest = -members, -others
    interval = bootstrap(
        (scores, rest),
        _area,
        n_resamples=RESAMPLES,
        batch=_AT_ONCE,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return MembershipTest(
        members=len(members),
        others=len(others),
        auc=float(_area(scores, rest)),
        low=float(interval.low),
        high=float(interval.high),
        p_value=float(mannwhitneyu(scores, rest, alternative="greater").pvalue),
        found_at_1=_found(scores, rest, 0.01),
        found_at_10=_found(scores, rest, 0.1),
        calibrated=calibrated,
        unit=unit,
    )


def _area(members: NDArray[Any], others: NDArray[Any], axis: int = -1) -> NDArray[np.float64]:
    """Return the area under the ROC curve, which is the rank sum of Mann and Whitney."""
    n, m = members.shape[axis], others.shape[axis]
    ranks = rankdata(np.concatenate([members, others], axis=axis), axis=axis)
    total = np.take(ranks, np.arange(n), axis=axis).sum(axis=axis)
    area: NDArray[np.float64] = (total - n * (n + 1) / 2) / (n * m)
    return area


def _found(members: NDArray[np.float64], others: NDArray[np.float64], rate: float) -> float:
    """Return the largest share of members that is found at a rate of false alarms, or below it."""
    true = np.arange(len(members) + len(others)) < len(members)
    scores = np.concatenate([members, others])
    false_rate, true_rate, _ = roc_curve(true, scores, drop_intermediate=False)
    return float(true_rate[false_rate <= rate].max())
