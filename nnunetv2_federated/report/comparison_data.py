"""All that a comparison's report shows, in plain numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunetv2_federated.federation.history import History, look_up
from nnunetv2_federated.report.statistics import (
    ALL_SITES,
    Difference,
    Key,
    Measure,
    Record,
    Spread,
    paired_difference,
    pairs,
    table,
)

Image = NDArray[Any]
"""Shape (y, x)."""
Histories = Mapping[tuple[str, int, int | str], History]
"""``federation.json`` by arm, seed and fold."""


@dataclass(frozen=True)
class Example:
    """A test case to look at."""

    case: str
    site: str
    truth: str
    """Its class, of a classification."""
    image: Image
    reference: Image | None
    """Segmentation, of the image's shape."""
    predictions: dict[str, tuple[str, Image | None]]
    """Arm to what is written above the picture, and its segmentation."""


@dataclass(frozen=True)
class Evidence:
    """Everything in a report."""

    title: str
    arms: list[str]
    groups: list[str]
    """Columns of the matrix: sites, all sites, external sites."""
    external: list[str]
    cells: dict[str, dict[str, dict[str, Spread]]]
    """Arm to group to metric; arms without a tested model are absent."""
    tested: dict[str, int]
    """Test cases of each group, of the first model."""
    metrics: list[str]
    """The headline first."""
    runs: dict[str, int]
    """Tested models of each arm."""
    differences: list[Difference]
    failures: dict[str, str]
    """Model to what went wrong."""
    histories: Histories
    counts: dict[str, dict[str, int]]
    """Site to class to number of cases."""
    settings: dict[str, Any]
    examples: list[Example]

    @property
    def headline(self) -> str:
        """The metric that models are judged by."""
        return self.metrics[0] if self.metrics else ""

    def cell(self, arm: str, group: str, metric: str) -> Spread | None:
        """Look up one value; ``None`` where nothing was tested."""
        return self.cells.get(arm, {}).get(group, {}).get(metric)

    def failures_of(self, arm: str) -> list[str]:
        """Why models of an arm failed."""
        return [why for model, why in self.failures.items() if model.startswith(f"{arm}, ")]


def gather(
    *,
    title: str,
    arms: list[str],
    runs: Mapping[str, Mapping[Key, Sequence[Record]]],
    failures: dict[str, str],
    histories: Histories,
    sites: list[str],
    external: list[str],
    unknown_site: str,
    counts: dict[str, dict[str, int]],
    settings: dict[str, Any],
    measure: Measure,
    examples: list[Example],
) -> Evidence:
    """Compute the tables of a report from the records of tested cases."""
    present = {r["site"] for own in runs.values() for records in own.values() for r in records}
    groups = [site for site in sites if site in present]
    groups += [ALL_SITES] + [site for site in external if site in present]
    cells = {arm: table(own, groups, external, measure) for arm, own in runs.items()}
    names = [name for own in cells.values() for name in own[ALL_SITES]]
    metrics = list(dict.fromkeys(names))
    first = next((records for own in runs.values() for records in own.values()), [])
    sizes = Counter(record["site"] for record in first)
    tested = {group: sizes[group] for group in groups}
    tested[ALL_SITES] = sum(n for site, n in sizes.items() if site not in external)
    differences = []
    if metrics:
        done = [arm for arm in arms if arm in runs]
        known = {site for site in present if site != unknown_site}
        for pair, group in pairs(done, known):
            differences.append(
                paired_difference(runs, pair, group, external, measure, metric=metrics[0])
            )
    return Evidence(
        title=title,
        arms=arms,
        groups=groups,
        external=external,
        cells=cells,
        tested=tested,
        metrics=metrics,
        runs={arm: len(own) for arm, own in runs.items()},
        differences=differences,
        failures=failures,
        histories=histories,
        counts=counts,
        settings=settings,
        examples=examples,
    )


def curve(
    histories: Histories, arm: str, *keys: str
) -> tuple[list[int], list[float | None], list[float | None]]:
    """Mean and spread over an arm's runs, by round, of a value of ``federation.json``.

    Returns
    -------
    tuple
        Rounds counted from 1, mean, and standard deviation (``None`` for fewer than two runs).
    """
    values: dict[int, list[float]] = {}
    for (name, _, _), history in histories.items():
        for record in history.rounds if name == arm else ():
            known = values.setdefault(record.round + 1, [])
            value = look_up(record, *keys)
            if value is not None:
                known.append(value)
    rounds = sorted(values)
    means = [float(np.mean(values[r])) if values[r] else None for r in rounds]
    stds = [float(np.std(values[r], ddof=1)) if len(values[r]) > 1 else None for r in rounds]
    return rounds, means, stds


@dataclass(frozen=True)
class Sent:
    """What one site of a federation sent."""

    arm: str
    site: str
    rounds: int
    mebibytes: float
    training_cases: int
    versions: str


def what_left(histories: Histories) -> list[Sent]:
    """Sum up what each site sent, of the first run of each federated arm.

    A round's bytes are shared equally by the sites that answered: each sends the same vector.
    """
    found, seen = [], set()
    for (arm, _, _), history in histories.items():
        if not arm.startswith("federated/") or arm in seen:
            continue
        seen.add(arm)
        for site, known in history.sites.items():
            took = [record for record in history.rounds if site in record.sites]
            sent = sum(record.bytes_up / max(1, len(record.sites)) for record in took)
            versions = ", ".join(f"{k} {v}" for k, v in known.versions.items())
            found.append(Sent(arm, site, len(took), sent / 2**20, known.training_cases, versions))
    return found
