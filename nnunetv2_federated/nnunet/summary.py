"""nnU-Net's ``validation/summary.json``: read, joined, and reduced to means over cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_json

from nnunetv2_federated.federation.aggregation import weighted_mean
from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.federation.messages import FullValidation


def read_headline(folder: Path) -> tuple[str, float]:
    """Return the first metric of ``foreground_mean`` in ``validation/summary.json``.

    nnU-Net's is Dice; a trainer with another summary puts its own headline metric first. NaN for
    ``null``, a value that is not defined.
    """
    means = load_json(str(folder / "validation" / "summary.json"))["foreground_mean"]
    name = next(iter(means))
    return name, math.nan if means[name] is None else float(means[name])


def join_summaries(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """Join the cases of several nnU-Net summaries; means are over all cases, as nnU-Net's."""
    cases = [case for summary in summaries for case in summary["metric_per_case"]]
    labels = list(summaries[0]["mean"])
    mean = {
        label: {
            metric: float(np.nanmean([case["metrics"][label][metric] for case in cases]))
            for metric in summaries[0]["mean"][label]
        }
        for label in labels
    }
    return {"foreground_mean": _foreground_mean(mean), "mean": mean, "metric_per_case": cases}


def summarise_site(site: str, cases: int, folder: Path) -> FullValidation:
    """Return the means of the summary in ``validation``, as :func:`summarise` does."""
    return summarise(site, cases, load_json(str(folder / "validation" / "summary.json")))


def summarise(site: str, cases: int, summary: dict[str, Any]) -> FullValidation:
    """Return the means of a site's summary, each with the number of cases it is taken over."""
    rows = summary.get("metric_per_case", [])

    def counted(label: str, metric: str, value: float) -> list[float]:
        values = [r["metrics"][label][metric] for r in rows if label in r.get("metrics", {})]
        count = sum(not math.isnan(v) for v in values) if values else cases
        return [_finite(value) or 0.0, float(count)] if count else [0.0, 0.0]

    return FullValidation(
        site=site,
        cases=cases,
        foreground_mean={k: _finite(v) for k, v in summary["foreground_mean"].items()},
        mean={
            str(label): {metric: counted(label, metric, v) for metric, v in metrics.items()}
            for label, metrics in summary.get("mean", {}).items()
        },
    )


def only_own(
    answers: Mapping[str, FullValidation],
    cases: Mapping[str, int],
    labels: Collection[str] | None,
    say: Callable[[str], None],
) -> dict[str, FullValidation]:
    """Return the answers that are of the sites' own cases and of the dataset's classes.

    Parameters
    ----------
    answers
        Answers of sites, by the names by which they were asked.
    cases
        Validation cases of each site, as it described itself.
    labels
        Classes or regions of the dataset; ``None`` for a trainer with a summary of its own.
    say
        Called with a line about each site that is left out.
    """
    kept = {}
    for site, answer in answers.items():
        try:
            kept[site] = answer.check(site, cases[site], labels)
        except SiteError as error:
            say(f"{site} did not validate: {error}")
    return kept


def pool_sites(sites: Sequence[FullValidation]) -> dict[str, Any]:
    """Join sites' validations to a summary like nnU-Net's, without ``metric_per_case``.

    Means of labels are over all cases, as if they were in one place. A summary without labels (a
    classifier's) gets the mean over sites, weighted by their cases.
    """
    sites = [site for site in sites if site.cases]
    mean = _means_of_labels(sites)
    names = dict.fromkeys(metric for site in sites for metric in site.foreground_mean)
    return {
        "foreground_mean": _foreground_mean(mean)
        or {metric: _mean_of_sites(sites, metric) for metric in names},
        "mean": mean,
        "sites": {s.site: {"cases": s.cases, "foreground_mean": s.foreground_mean} for s in sites},
    }


def _means_of_labels(sites: Sequence[FullValidation]) -> dict[str, dict[str, float]]:
    labels = {label: metrics for site in sites for label, metrics in site.mean.items()}
    return {
        label: {metric: _mean_of_label(sites, label, metric) for metric in metrics}
        for label, metrics in labels.items()
    }


def _mean_of_label(sites: Sequence[FullValidation], label: str, metric: str) -> float:
    """Return the mean over all cases of all sites of a label's metric."""
    means = (site.mean.get(label, {}).get(metric) for site in sites)
    return weighted_mean((mean[0], mean[1]) for mean in means if mean is not None)


def _mean_of_sites(sites: Sequence[FullValidation], metric: str) -> float:
    """Return the mean over sites of a metric, weighted by their cases."""
    means = ((site.foreground_mean.get(metric), site.cases) for site in sites)
    return weighted_mean((mean, cases) for mean, cases in means if mean is not None)


def _foreground_mean(mean: dict[str, dict[str, float]]) -> dict[str, float]:
    foreground = [metrics for label, metrics in mean.items() if label != "0"]
    names = dict.fromkeys(name for metrics in foreground for name in metrics)
    return {
        name: float(np.mean([metrics[name] for metrics in foreground if name in metrics]))
        for name in names
    }


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
