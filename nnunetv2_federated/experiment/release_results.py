"""Validations of a model, for its card: means over several cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.evaluation import FEWEST_CASES
from nnunetv2_federated.federation.model_card import Metrics, Scores
from nnunetv2_federated.federation.run import RUN_FILE, SiteCases, read_run
from nnunetv2_federated.nnunet.data.dataset import read_json
from nnunetv2_federated.nnunet.summary import join_summaries

SUMMARY_FILE = "summary.json"
_VOXELS = ("FN", "FP", "TN", "TP", "n_pred", "n_ref")
"""What nnU-Net counts in a case, which says more of the cases than of the model."""


def case_of(row: Mapping[str, Any]) -> str:
    """Return the case of a row of ``metric_per_case``: of a segmentation its file without ending.

    Parameters
    ----------
    row
        Row of nnU-Net's ``summary.json``, or of a classifier's.
    """
    if "case" in row:
        return str(row["case"])
    name = Path(str(row.get("prediction_file") or row.get("reference_file") or "")).name
    return name.removesuffix(".gz").rpartition(".")[0]


def read_summary(path: Path) -> dict[str, Any]:
    """Read ``summary.json``; empty if there is none.

    Raises
    ------
    SettingsError
        If it is damaged, or of another form.
    """
    summary = read_json(path) if path.is_file() else {}
    rows = summary.get("metric_per_case", []) if isinstance(summary, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SettingsError(f"{path} is no summary of nnU-Net's: validate again.")
    return dict(summary)


def scores_of(cases: int, means: Mapping[str, Any]) -> Scores | None:
    """Return means over cases; ``None`` if they are too few for a mean."""
    metrics: Metrics = {
        str(name): float(value) if _is_number(value) else None
        for name, value in means.items()
        if name not in _VOXELS
    }
    return Scores(cases=cases, metrics=metrics) if cases >= FEWEST_CASES and metrics else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def validation_scores(fold: Path) -> Scores | None:
    """Return nnU-Net's full validation of a fold."""
    summary = read_summary(fold / "validation" / SUMMARY_FILE)
    return scores_of(_cases_of(summary), summary.get("foreground_mean", {}))


def site_scores(fold: Path) -> dict[str, Scores]:
    """Return the full validation of a fold at each site that has several validation cases.

    Of sites on other machines it is what they answered; of sites on this machine it is computed
    from the cases, which nnU-Net's summary of a segmentation has.
    """
    summary = read_summary(fold / "validation" / SUMMARY_FILE)
    found = {
        name: scores_of(int(site["cases"]), site["foreground_mean"])
        for name, site in summary.get("sites", {}).items()
    }
    if (fold / "federation" / RUN_FILE).is_file():
        found |= _of_own_cases(summary, read_run(fold / "federation").sites)
    shown = {name: scores for name, scores in found.items() if scores is not None}
    return without_remainder(shown, _cases_of(summary))


def _of_own_cases(
    summary: Mapping[str, Any], sites: Sequence[SiteCases]
) -> dict[str, Scores | None]:
    """Return the means of each site of this machine that has cases in a summary."""
    rows = [row for row in summary.get("metric_per_case", []) if "metrics" in row]
    several = len({site.dataset for site in sites}) > 1
    found = {}
    for site in sites:
        own = [row for row in rows if _is_of(row, site, several=several)]
        if own:
            joined = join_summaries([{"metric_per_case": own, "mean": summary["mean"]}])
            found[site.name] = scores_of(len(own), joined["foreground_mean"])
    return found


def _cases_of(summary: Mapping[str, Any]) -> int:
    """Return the number of cases that a summary is over."""
    rows = len(summary.get("metric_per_case", []))
    return rows or sum(int(site["cases"]) for site in summary.get("sites", {}).values())


def without_remainder(sites: Mapping[str, Scores], cases: int) -> dict[str, Scores]:
    """Leave out sites until those left out have several cases, or none is left out.

    The mean of all cases is known, too: what the sites that are shown leave of it must not be the
    score of so few cases.

    Parameters
    ----------
    sites
        Means of the sites that have several cases.
    cases
        Number of cases of all sites together.
    """
    shown = dict(sites)
    while shown and 0 < cases - sum(scores.cases for scores in shown.values()) < FEWEST_CASES:
        del shown[min(shown, key=lambda name: shown[name].cases)]
    return shown


def _is_of(row: Mapping[str, Any], site: SiteCases, *, several: bool) -> bool:
    """Whether a row is of a site's case; datasets of several sites may have cases of one name."""
    there = site.dataset in Path(str(row.get("reference_file", ""))).parts
    return case_of(row) in site.validation_cases and (there or not several)
