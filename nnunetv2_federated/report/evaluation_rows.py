"""What the report of an evaluation of trained models shows, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnunetv2_federated.federation.evaluation import Moments, MomentsOfLabels, SiteEvaluation
from nnunetv2_federated.federation.pooled_evaluation import Pooled, PooledLabels

Rows = tuple[list[str], list[list[str]]]
"""Header and rows of a table."""
FOREGROUND = "mean over labels"
LEFT_OUT = "too few"

SMALL_PRINT = (
    "Means are over cases, as nnU-Net takes them, as if all were in one place. The 95 % interval "
    "is about the mean for these sites and other patients: ± 1.96 standard errors, each site a "
    "stratum. Deviations are over patients where they are known, else over cases. "
    f"“{LEFT_OUT}”: fewer patients than a site tells of."
)
SCORES_PRINT = (
    "Over a site's own cases. The mean over sites is weighted by their cases; it is not the metric "
    "of all cases together, which would need each case's probability."
)


@dataclass(frozen=True)
class ReportedModel:
    """A model, as a report names it."""

    name: str
    trainer: str
    configuration: str
    folds: list[int | str]
    sha256: str


@dataclass(frozen=True)
class EvaluationReport:
    """Everything that a report shows."""

    models: list[ReportedModel]
    labels: Mapping[str, str]
    """Name of each label or region."""
    pooled: list[PooledLabels]
    """Of each model that segments."""
    difference: PooledLabels | None
    scores: list[dict[str, float | None]]
    """Of each model that classifies."""
    sites: list[SiteEvaluation]
    settings: Mapping[str, Any]


def pooled_rows(report: EvaluationReport, parts: Mapping[str, PooledLabels]) -> Rows:
    """Return header and rows of metrics over all sites, by what they are of."""
    header = [
        "",
        "label",
        "metric",
        "mean",
        "95 % interval",
        "deviation",
        "cases",
        "patients",
        "sites",
    ]
    rows = []
    for name, part in parts.items():
        for label, metrics in ((FOREGROUND, part.foreground), *part.labels.items()):
            rows += [
                [name, label_name(report, label), metric, *_pooled(found)]
                for metric, found in metrics.items()
            ]
    return header, rows


def _pooled(found: Pooled | None) -> list[str]:
    if found is None:
        return [LEFT_OUT, "", "", "", "", ""]
    numbers = (found.cases, found.patients, found.sites)
    interval = f"{_number(found.low)} to {_number(found.high)}"
    return [_number(found.mean), interval, _number(found.std), *map(str, numbers)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def label_name(report: EvaluationReport, label: str) -> str:
    """Return the name of a label or region."""
    return report.labels.get(label, label)


def site_rows(report: EvaluationReport) -> Rows:
    """Return header and rows of the metrics of segmentations at each site."""
    header = ["site", "", "label", "metric", "mean", "deviation", "cases", "patients", "quantiles"]
    rows = []
    for site in report.sites:
        for name, part in _parts(report, site).items():
            for label, metrics in ((FOREGROUND, part.foreground), *part.labels.items()):
                rows += [
                    [site.site, name, label_name(report, label), metric, *_moments(found)]
                    for metric, found in metrics.items()
                ]
    return header, rows


def _parts(report: EvaluationReport, site: SiteEvaluation) -> dict[str, MomentsOfLabels]:
    parts = dict(zip(model_names(report), site.models, strict=False))
    return parts | ({"difference": site.difference} if site.difference is not None else {})


def _moments(found: Moments | None) -> list[str]:
    if found is None:
        return [LEFT_OUT, "", "", "", ""]
    quantiles = " ".join(map(_number, found.quantiles or ())) or "-"
    deviation = _number(found.variance**0.5)
    return [_number(found.mean), deviation, str(found.cases), str(found.patients), quantiles]


def score_rows(report: EvaluationReport) -> Rows:
    """Return header and rows of classifiers' metrics: each site, and the mean weighted by cases."""
    names = list(dict.fromkeys(name for scores in report.scores for name in scores))
    header = ["site", "model", "cases", *names]
    rows = []
    for index, model in enumerate(model_names(report)):
        for site in report.sites:
            own = site.scores[index]
            shown = [LEFT_OUT if own is None else _number(own.get(name)) for name in names]
            rows.append([site.site, model, str(site.cases), *shown])
        cases = sum(site.cases for site in report.sites if site.scores[index] is not None)
        means = [_number(report.scores[index].get(name)) for name in names]
        rows.append(["mean over sites, weighted by cases", model, str(cases), *means])
    return header, rows


def model_names(report: EvaluationReport) -> list[str]:
    """Return the models' names; two of one name are numbered."""
    names = [model.name for model in report.models]
    if len(set(names)) == len(names):
        return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]


def model_rows(report: EvaluationReport) -> Rows:
    """Return header and rows of what was evaluated."""
    return ["model", "trainer", "configuration", "folds", "SHA-256"], [
        [name, m.trainer, m.configuration, " ".join(map(str, m.folds)), m.sha256]
        for name, m in zip(model_names(report), report.models, strict=True)
    ]


def taken_part_rows(report: EvaluationReport) -> Rows:
    """Return header and rows of the sites, and what counts as one there."""
    return ["site", "cases", "patients", "counted by"], [
        [site.site, str(site.cases), str(site.patients), site.unit] for site in report.sites
    ]


def sections(report: EvaluationReport) -> list[tuple[str, Rows, str]]:
    """Return title, table and small print of each section."""
    names = model_names(report)
    found = [("Models", model_rows(report), ""), ("Sites", taken_part_rows(report), "")]
    if report.scores:
        return [*found, ("Metrics", score_rows(report), SCORES_PRINT)]
    parts = dict(zip(names, report.pooled, strict=True))
    found.append(("All sites", pooled_rows(report, parts), SMALL_PRINT))
    if report.difference is not None:
        title = f"{names[0]} minus {names[1]}"
        found.append(
            (
                "Paired differences",
                pooled_rows(report, {title: report.difference}),
                "Case by case, on cases for which both models have a value.",
            )
        )
    quantiles = ", ".join(f"{q:g}" for q in report.settings["quantiles"])
    found.append(("Each site", site_rows(report), f"Quantiles, where told: {quantiles or 'none'}."))
    return found
