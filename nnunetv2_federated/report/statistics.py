"""Statistics of tested cases: means, spread over seeds and folds, and paired differences."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from nnunetv2_federated.federation.tested_case import TestedCase

Measure = Callable[[Sequence[Mapping[str, Any]], Collection[str] | None], dict[str, float]]
"""Returns metrics of a group of cases from their :attr:`.TestedCase.record`; only those named, if
names are given."""
Key = tuple[int, int | str]
"""Seed and fold of a run."""

ALL_SITES = "all sites"
RESAMPLES = 1000
"""Bootstrap samples of an interval."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds and folds."""

    mean: float
    std: float | None
    """Standard deviation with ``n - 1`` in the denominator; ``None`` for a single run."""

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "-"
        return f"{self.mean:.4f}" + ("" if self.std is None else f" ± {self.std:.4f}")


@dataclass(frozen=True)
class Difference:
    """A paired difference, ``first`` minus ``second``, with its 95 % bootstrap interval."""

    first: str
    second: str
    group: str
    metric: str
    value: float
    low: float | None
    high: float | None
    cases: int


def spread(values: Sequence[float]) -> Spread:
    """Summarise the values of several runs; runs without a value (NaN) do not count."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return Spread(float("nan"), None)
    return Spread(float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None)


def in_group(
    cases: Sequence[TestedCase], group: str, external: Collection[str]
) -> list[TestedCase]:
    """Return the cases of a site, or with :data:`ALL_SITES` those of all sites that train."""
    if group == ALL_SITES:
        return [case for case in cases if case.site not in external]
    return [case for case in cases if case.site == group]


def table(
    runs: Mapping[Key, Sequence[TestedCase]],
    groups: Sequence[str],
    external: Collection[str],
    measure: Measure,
) -> dict[str, dict[str, Spread]]:
    """Return the metrics of one arm: group to metric to mean and spread over its runs."""
    spreads: dict[str, dict[str, Spread]] = {}
    for group in groups:
        measured = [
            measure(_records(in_group(cases, group, external)), None) for cases in runs.values()
        ]
        names = list(dict.fromkeys(name for metrics in measured for name in metrics))
        spreads[group] = {
            name: spread([metrics.get(name, float("nan")) for metrics in measured])
            for name in names
        }
    return spreads


def paired_difference(
    arms: Mapping[str, Mapping[Key, Sequence[TestedCase]]],
    pair: tuple[str, str],
    group: str,
    external: Collection[str],
    measure: Measure,
    *,
    metric: str,
    resamples: int = RESAMPLES,
) -> Difference:
    """Compare two arms on the same cases, in the runs that both have.

    Cases are drawn with replacement, the same for both arms and for every seed, within each fold
    and, where cases have a ``stratum``, within each stratum; where they have a ``patient``, all
    cases of a patient are drawn together. The interval is the percentile bootstrap's (Efron and
    Tibshirani 1993, ch. 13). It shows how the test cases vary, not the
    training: for that look at the spread over seeds.

    Parameters
    ----------
    arms
        Tested cases of each run, of each arm.
    pair
        Names of the two arms; the difference is the first minus the second.
    group
        Site whose cases count, or :data:`ALL_SITES`.
    external
        Sites that take no part in the training.
    measure
        Computes the metric of a group of cases.
    metric
        Name of the metric.
    resamples
        Number of bootstrap samples.
    """
    first, second = pair
    runs = _paired_runs(arms[first], arms[second], group, external)
    strata = _strata(runs)
    number = sum(len(unit) for stratum in strata for unit in stratum.units)
    if not number:
        return Difference(first, second, group, metric, float("nan"), None, None, 0)

    def statistic(*indices: NDArray[np.int64]) -> float:
        drawn: dict[int | str, list[str]] = {}
        for stratum, chosen in zip(strata, indices, strict=True):
            units = (stratum.units[i] for i in chosen)
            drawn.setdefault(stratum.fold, []).extend(case for unit in units for case in unit)
        return float(np.mean([run.difference(drawn[run.fold], measure, metric) for run in runs]))

    positions = [np.arange(len(stratum.units)) for stratum in strata]
    low, high = _interval(positions, statistic, resamples)
    return Difference(first, second, group, metric, statistic(*positions), low, high, number)


@dataclass(frozen=True)
class _PairedRun:
    """One run, a seed and a fold, of both arms."""

    fold: int | str
    first: Mapping[str, TestedCase]
    """Tested cases of the first arm, by case."""
    second: Mapping[str, TestedCase]

    def difference(self, cases: Sequence[str], measure: Measure, metric: str) -> float:
        """Return the metric of the first arm minus that of the second, on the same cases."""
        ours, theirs = (
            measure(_records([arm[case] for case in cases]), (metric,))[metric]
            for arm in (self.first, self.second)
        )
        return ours - theirs


@dataclass(frozen=True)
class _Stratum:
    """Units of one fold among which the bootstrap draws."""

    fold: int | str
    units: list[tuple[str, ...]]
    """Single cases, or all cases of a patient."""


def _paired_runs(
    first: Mapping[Key, Sequence[TestedCase]],
    second: Mapping[Key, Sequence[TestedCase]],
    group: str,
    external: Collection[str],
) -> list[_PairedRun]:
    """Return the runs that both arms have, with the cases of a group; a run without is left out."""
    paired = []
    for key in first:
        if key in second:
            ours, theirs = (
                _by_case(in_group(arm[key], group, external)) for arm in (first, second)
            )
            if ours:
                paired.append(_PairedRun(key[1], ours, theirs))
    return paired


def _by_case(cases: Sequence[TestedCase]) -> dict[str, TestedCase]:
    return {case.case: case for case in cases}


def _records(cases: Sequence[TestedCase]) -> list[Mapping[str, Any]]:
    return [case.record for case in cases]


def _strata(runs: Sequence[_PairedRun]) -> list[_Stratum]:
    """Return what is drawn among each other: the units of one fold and stratum.

    A patient with cases of several strata is in a stratum of its own, named after all of them.
    """
    strata: dict[tuple[str, str], _Stratum] = {}
    for run in runs:
        for unit in _units(run.first):
            names = sorted({str(run.first[case].stratum) for case in unit})
            stratum = strata.setdefault((str(run.fold), "+".join(names)), _Stratum(run.fold, []))
            if unit not in stratum.units:  # an earlier seed has the same cases
                stratum.units.append(unit)
    return [strata[key] for key in sorted(strata)]


def _units(cases: Mapping[str, TestedCase]) -> list[tuple[str, ...]]:
    """Return the cases of each patient; a case without a known patient is a unit of its own."""
    units: dict[tuple[str, str], list[str]] = {}
    for name, case in sorted(cases.items()):
        unit = ("case", name) if case.patient is None else ("patient", case.patient)
        units.setdefault(unit, []).append(name)
    return [tuple(unit) for unit in units.values()]


def _interval(
    positions: Sequence[NDArray[np.int64]], statistic: Callable[..., float], resamples: int
) -> tuple[float | None, float | None]:
    """Return the bounds of the 95 % interval; ``None`` for both where there is none."""
    if any(len(position) < 2 for position in positions):  # nothing to draw from
        return None, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy warns of a distribution without spread
        interval = bootstrap(
            positions,
            statistic,
            n_resamples=resamples,
            vectorized=False,
            method="percentile",
            rng=np.random.default_rng(12345),
        ).confidence_interval
    low, high = float(interval.low), float(interval.high)
    return (None, None) if math.isnan(low) or math.isnan(high) else (low, high)


def pairs(arms: Sequence[str], sites: Collection[str]) -> list[tuple[tuple[str, str], str]]:
    """Return which arms are compared, and on which group of cases.

    The first federated arm with each site alone, on all sites and at that site, and with the
    ensemble of these; a personal model with its federation and with the site alone, at that site;
    every federated arm with the centralised one; every further federated arm with the first.
    """
    federated = [arm for arm in arms if arm.startswith("federated/")]
    if not federated:
        return []
    first = federated[0]
    compared = [pair for arm in arms for pair in _pairs_of(arm, first, arms, sites)]
    if "centralised" in arms:
        compared += [((arm, "centralised"), ALL_SITES) for arm in federated]
    return compared + [((arm, first), ALL_SITES) for arm in federated[1:]]


def _pairs_of(
    arm: str, first: str, arms: Sequence[str], sites: Collection[str]
) -> list[tuple[tuple[str, str], str]]:
    """Return the comparisons of an arm of single sites, or of their ensemble, with others."""
    kind, _, site = arm.partition("/")
    if kind == "personal":
        return _pairs_of_personal(arm, arms, sites)
    if kind not in ("local", "ensemble"):
        return []
    at_home = [((first, arm), site)] if site in sites else []
    return [((first, arm), ALL_SITES), *at_home]


def _pairs_of_personal(
    arm: str, arms: Sequence[str], sites: Collection[str]
) -> list[tuple[tuple[str, str], str]]:
    _, federation, site = arm.split("/", 2)
    others = (f"federated/{federation}", f"local/{site}")
    return [((arm, other), site) for other in others if other in arms and site in sites]
