"""All numbers, texts and pictures that the report of a comparison shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunetv2_federated.federation.history import History, look_up
from nnunetv2_federated.federation.messages import PrivacyTerms
from nnunetv2_federated.federation.privacy_attacks import MembershipTest
from nnunetv2_federated.federation.tested_case import TestedCase
from nnunetv2_federated.report.statistics import (
    ALL_SITES,
    Difference,
    Key,
    Measure,
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
    """A test case with its pictures."""

    case: str
    site: str
    truth: str
    """Class of the case, of a classification; empty for a segmentation."""
    image: Image
    reference: Image | None
    """Reference segmentation, of the shape of the image."""
    predictions: dict[str, tuple[str, Image | None]]
    """Text above the picture and predicted segmentation, by arm."""


@dataclass(frozen=True)
class ComparisonData:
    """Everything that a report shows."""

    title: str
    arms: list[str]
    groups: list[str]
    """Columns of the matrix: sites, all sites together, external sites."""
    external: list[str]
    cells: dict[str, dict[str, dict[str, Spread]]]
    """Values by arm, group and metric; arms without a tested model are absent."""
    tested: dict[str, int]
    """Number of test cases of each group, of the first model."""
    metrics: list[str]
    """Names of the metrics, the headline first."""
    runs: dict[str, int]
    """Number of tested models of each arm."""
    differences: list[Difference]
    failures: dict[str, str]
    """Reason of failure, by model."""
    histories: Histories
    counts: dict[str, dict[str, int]]
    """Number of cases, by site and class."""
    settings: dict[str, Any]
    examples: list[Example]
    attacks: Mapping[str, MembershipTest] = field(default_factory=dict)
    """Membership test of each model that ``nnUNetv2_federated_attack`` was run on, by its name."""

    @property
    def headline(self) -> str:
        """First metric, by which models are compared."""
        return self.metrics[0] if self.metrics else ""

    def cell(self, arm: str, group: str, metric: str) -> Spread | None:
        """Return one value; ``None`` where nothing was tested."""
        return self.cells.get(arm, {}).get(group, {}).get(metric)

    def matrix(self) -> tuple[list[str], list[list[float | None]]]:
        """Return the arms that were tested, and a row with the headline of each group for each."""
        arms = [arm for arm in self.arms if arm in self.cells]
        cells = [[self.cell(arm, group, self.headline) for group in self.groups] for arm in arms]
        return arms, [[None if cell is None else cell.mean for cell in row] for row in cells]

    def failures_of(self, arm: str) -> list[str]:
        """Return the reasons why models of an arm failed."""
        return [why for model, why in self.failures.items() if model.startswith(f"{arm}, ")]


def gather(
    *,
    title: str,
    arms: list[str],
    runs: Mapping[str, Mapping[Key, Sequence[TestedCase]]],
    failures: dict[str, str],
    histories: Histories,
    sites: list[str],
    external: list[str],
    unknown_site: str,
    counts: dict[str, dict[str, int]],
    settings: dict[str, Any],
    measure: Measure,
    examples: list[Example],
    attacks: Mapping[str, MembershipTest] | None = None,
) -> ComparisonData:
    """Compute the tables of a report from tested cases.

    Parameters
    ----------
    title, arms, failures, histories, external, counts, settings, examples, attacks
        Attributes of :class:`ComparisonData`.
    runs
        Tested cases of each run, of each arm that has any.
    sites
        Sites that take part in the training.
    unknown_site
        Site of test cases whose site is not known.
    measure
        Computes the metrics of a group of cases.
    """
    groups = _groups(runs, sites, external)
    cells = {arm: table(of_arm, groups, external, measure) for arm, of_arm in runs.items()}
    metrics = list(dict.fromkeys(name for of_arm in cells.values() for name in of_arm[ALL_SITES]))
    known_sites = set(groups) - {unknown_site}
    compared = pairs([arm for arm in arms if arm in runs], known_sites) if metrics else []
    return ComparisonData(
        title=title,
        arms=arms,
        groups=groups,
        external=external,
        cells=cells,
        tested=_count_tested(runs, groups, external),
        metrics=metrics,
        runs={arm: len(of_arm) for arm, of_arm in runs.items()},
        differences=[
            paired_difference(runs, pair, group, external, measure, metric=metrics[0])
            for pair, group in compared
        ],
        failures=failures,
        histories=histories,
        counts=counts,
        settings=settings,
        examples=examples,
        attacks=attacks or {},
    )


def _groups(
    runs: Mapping[str, Mapping[Key, Sequence[TestedCase]]],
    sites: Sequence[str],
    external: Sequence[str],
) -> list[str]:
    """Return the sites that have test cases, with all sites together before the external ones."""
    tested = {case.site for of_arm in runs.values() for cases in of_arm.values() for case in cases}
    return [
        *(site for site in sites if site in tested),
        ALL_SITES,
        *(site for site in external if site in tested),
    ]


def _count_tested(
    runs: Mapping[str, Mapping[Key, Sequence[TestedCase]]],
    groups: Sequence[str],
    external: Sequence[str],
) -> dict[str, int]:
    """Count the test cases of each group, of the first model."""
    first = next((cases for of_arm in runs.values() for cases in of_arm.values()), ())
    sizes = Counter(case.site for case in first)
    all_sites = sum(size for site, size in sizes.items() if site not in external)
    return {group: all_sites if group == ALL_SITES else sizes[group] for group in groups}


def curve(
    histories: Histories, arm: str, *keys: str
) -> tuple[list[int], list[float | None], list[float | None]]:
    """Return mean and spread of a value of ``federation.json`` over an arm's runs, by round.

    Parameters
    ----------
    histories
        Histories of all runs.
    arm
        Name of the arm.
    *keys
        Names that lead to the value in the record of a round, such as ``global_model``, ``loss``.

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
    """What one site of a federation sent in the first run."""

    arm: str
    site: str
    rounds: int
    """Number of rounds in which the site was aggregated."""
    mebibytes: float
    """MiB of all its messages."""
    training_cases: int
    versions: str
    """Versions of the site's packages, in one line."""


def what_left(histories: Histories) -> list[Sent]:
    """Return what each site sent in the first run of each federated arm.

    The bytes of a round are divided equally among its sites: each sends a vector of one length.
    """
    first_runs: dict[str, History] = {}
    for (arm, _, _), history in histories.items():
        if arm.startswith("federated/"):
            first_runs.setdefault(arm, history)
    return [
        _sent(arm, site, history) for arm, history in first_runs.items() for site in history.sites
    ]


def promises(histories: Histories) -> dict[str, list[tuple[str, PrivacyTerms]]]:
    """Return what the sites of each model have promised their patients, by the model's name."""
    found = {
        f"{arm}, seed {seed}, fold {fold}": [
            (site, summary.privacy)
            for site, summary in history.sites.items()
            if summary.privacy is not None
        ]
        for (arm, seed, fold), history in histories.items()
    }
    return {model: sites for model, sites in found.items() if sites}


def _sent(arm: str, site: str, history: History) -> Sent:
    rounds = [record for record in history.rounds if site in record.sites]
    summary = history.sites[site]
    return Sent(
        arm,
        site,
        rounds=len(rounds),
        mebibytes=sum(record.bytes_up / len(record.sites) for record in rounds) / 2**20,
        training_cases=summary.training_cases,
        versions=", ".join(f"{name} {version}" for name, version in summary.versions.items()),
    )
