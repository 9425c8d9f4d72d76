"""The figure of an evaluation: means with their intervals, at each site and over all."""

from __future__ import annotations

import math
from collections.abc import Iterator

import plotly.graph_objects as go

from nnunetv2_federated.federation.evaluation import Metric, Moments, MomentsOfLabels
from nnunetv2_federated.federation.pooled_evaluation import Pooled, PooledLabels
from nnunetv2_federated.report.evaluation_rows import (
    FOREGROUND,
    EvaluationReport,
    label_name,
    model_names,
)
from nnunetv2_federated.report.partition import PALETTE
from nnunetv2_federated.report.text import figure_text

Point = tuple[str, float, float]
"""Label, mean, and half the width of its 95 % interval."""
_NORMAL = 1.96


def means_figure(report: EvaluationReport) -> go.Figure | None:
    """Draw the first metric of each label; ``None`` for classifiers, which have no labels."""
    if not report.pooled:
        return None
    metric = next(iter(report.pooled[0].foreground))
    figure = go.Figure()
    for index, (name, points) in enumerate(_series(report, metric)):
        figure.add_scatter(
            x=[figure_text(label) for label, _, _ in points],
            y=[mean for _, mean, _ in points],
            error_y={"type": "data", "array": [half for _, _, half in points]},
            name=figure_text(name),
            mode="markers",
            marker={"size": 9, "color": PALETTE[index % len(PALETTE)]},
        )
    figure.update_layout(
        template="plotly_white", height=420, yaxis_title=metric, scattermode="group"
    )
    return figure


def _series(report: EvaluationReport, metric: Metric) -> Iterator[tuple[str, list[Point]]]:
    """Yield the points of each model over all sites, then at each site."""
    for number, model in enumerate(model_names(report)):
        yield f"{model}, all sites", _points(report, report.pooled[number], metric)
        for site in report.sites:
            yield f"{model}, {site.site}", _points(report, site.models[number], metric)


def _points(
    report: EvaluationReport, part: PooledLabels | MomentsOfLabels, metric: Metric
) -> list[Point]:
    """Return the points of all labels that are told."""
    found = {FOREGROUND: part.foreground[metric]}
    found |= {label_name(report, label): of[metric] for label, of in part.labels.items()}
    return [(name, told.mean, _half(told)) for name, told in found.items() if told is not None]


def _half(told: Pooled | Moments) -> float:
    """Return half the width of a 95 % interval."""
    if isinstance(told, Moments):
        return _NORMAL * math.sqrt(told.variance / told.patients)
    return told.high - told.mean
