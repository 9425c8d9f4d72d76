"""What the tested cases say: means, spread over seeds and folds, and paired differences."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

Record = Mapping[str, Any]
Measure = Callable[[Sequence[Record], Collection[str] | None], dict[str, float]]
"""Metrics of a group of cases; only those named, if names are given."""
Key = tuple[int, int | str]
"""Seed and fold."""

ALL_SITES = "all sites"
RESAMPLES = 1000


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds and folds."""

    mean: float
    std: float | None
    """``None`` for a single run; with ``n - 1`` in the denominator."""

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
    """Summarise runs; those without a value do not count."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return Spread(float("nan"), None)
    return Spread(float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None)


def in_group(records: Sequence[Record], group: str, external: Collection[str]) -> list[Record]:
    """Cases of a site, or of all sites that train."""
    if group == ALL_SITES:
        return [record for record in records if record["site"] not in external]
    return [record for record in records if record["site"] == group]


def table(
    runs: Mapping[Key, Sequence[Record]],
    groups: Sequence[str],
    external: Collection[str],
    measure: Measure,
) -> dict[str, dict[str, Spread]]:
    """Metrics of one arm: group to metric to mean and spread over its runs."""
    found: dict[str, dict[str, Spread]] = {}
    for group in groups:
        measured = [measure(in_group(records, group, external), None) for records in runs.values()]
        names = list(dict.fromkeys(name for one in measured for name in one))
        found[group] = {
            name: spread([one.get(name, float("nan")) for one in measured]) for name in names
        }
    return found


def paired_difference(
    arms: Mapping[str, Mapping[Key, Sequence[Record]]],
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
    and, where records name a ``stratum``, within each stratum; where they name a ``patient``, all
    cases of a patient are drawn together. The interval is the percentile bootstrap's (Efron and
    Tibshirani 1993, ch. 13). It tells how the test cases vary, not the
    training: for that look at the spread over seeds.
    """
    first, second = pair
    keys = [key for key in arms[first] if key in arms[second]]
    runs = {
        key: [_by_case(in_group(arms[arm][key], group, external)) for arm in pair] for key in keys
    }
    runs = {key: found for key, found in runs.items() if found[0]}
    strata = _strata({key: found[0] for key, found in runs.items()})
    cases = [case for _, members in strata for unit in members for case in unit]
    if not cases:
        return Difference(first, second, group, metric, float("nan"), None, None, 0)

    def statistic(*indices: NDArray[np.int64]) -> float:
        chosen: dict[int | str, list[str]] = {}
        for (fold, members), drawn in zip(strata, indices, strict=True):
            chosen.setdefault(fold, []).extend(case for i in drawn for case in members[i])
        differences = []
        for (_, fold), found in runs.items():
            ours, theirs = (
                measure([records[case] for case in chosen[fold]], (metric,))[metric]
                for records in found
            )
            differences.append(ours - theirs)
        return float(np.mean(differences))

    positions = [np.arange(len(members)) for _, members in strata]
    low, high = _interval(positions, statistic, resamples)
    value = statistic(*positions)
    return Difference(first, second, group, metric, value, low, high, len(cases))


def _by_case(records: Sequence[Record]) -> dict[str, Record]:
    return {record["case"]: record for record in records}


def _strata(
    runs: Mapping[Key, Mapping[str, Record]],
) -> list[tuple[int | str, list[tuple[str, ...]]]]:
    """Return what is drawn among each other, of one fold and stratum: cases, or all of a patient.

    A patient with cases of several strata is of the stratum that is all of them.
    """
    found: dict[tuple[str, str], tuple[int | str, list[tuple[str, ...]]]] = {}
    for (_, fold), records in runs.items():
        units: dict[str, list[str]] = {}
        for case, record in sorted(records.items()):
            patient = record.get("patient")
            units.setdefault(f"case {case}" if patient is None else str(patient), []).append(case)
        for unit in map(tuple, units.values()):
            stratum = sorted({str(records[case].get("stratum")) for case in unit})
            members = found.setdefault((str(fold), "+".join(stratum)), (fold, []))[1]
            if unit not in members:
                members.append(unit)
    return [found[key] for key in sorted(found)]


def _interval(
    positions: Sequence[NDArray[np.int64]], statistic: Callable[..., float], resamples: int
) -> tuple[float | None, float | None]:
    if any(len(position) < 2 for position in positions):  # nothing to draw from
        return None, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a distribution without spread
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
    """Which arms are compared, and on whose cases.

    The first federated arm with each site alone, on all sites and at that site; every federated
    arm with the centralised one; every further federated arm with the first.
    """
    federated = [arm for arm in arms if arm.startswith("federated/")]
    if not federated:
        return []
    first = federated[0]
    found = []
    for arm in arms:
        kind, _, site = arm.partition("/")
        if kind == "local":
            found.append(((first, arm), ALL_SITES))
            if site in sites:
                found.append(((first, arm), site))
    if "centralised" in arms:
        found += [((arm, "centralised"), ALL_SITES) for arm in federated]
    return found + [((arm, first), ALL_SITES) for arm in federated[1:]]
