"""The interactive figures of a tuning, with Plotly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from nnunetv2_federated.report.partition import PALETTE
from nnunetv2_federated.report.plotly_figures import styled
from nnunetv2_federated.report.text import figure_text
from nnunetv2_federated.report.tuning_data import (
    ReportedTrial,
    TuningData,
    best_so_far,
    parallel_axes,
)

SCALE = "Viridis"
OUTCOMES = ("complete", "stopped", "paused", "diverged")
COLOURS = dict(zip(OUTCOMES, (PALETTE[2], PALETTE[0], PALETTE[1], PALETTE[5]), strict=True))


def tuning_figures(data: TuningData, logarithms: Sequence[str]) -> dict[str, go.Figure]:
    """Return every figure that has values, by name.

    Parameters
    ----------
    data
        The study.
    logarithms
        Parameters whose logarithm is drawn.
    """
    figures = {
        "history": history(data),
        "curves": curves(data),
        "parallel": parallel(data, logarithms),
        "importances": importances(data),
        "budget": budget(data),
    }
    return {name: styled(figure) for name, figure in figures.items() if figure.data}


def history(data: TuningData) -> go.Figure:
    """Draw the score of each trial at the rung that it reached, and the best of the highest."""
    figure = go.Figure()
    for outcome, own in by_outcome(data).items():
        figure.add_scatter(
            x=[t.number for t in own], y=[t.score for t in own], name=outcome, mode="markers",
            marker={
                "color": COLOURS[outcome],
                "size": [6 + 8 * t.reached / data.rounds for t in own],
            },
            customdata=[_told(t) for t in own],
            hovertemplate="trial %{x}: %{y:.4f}<br>%{customdata}",
        )  # fmt: skip
    best = best_so_far(data)
    if best:
        figure.add_scatter(
            x=[number for number, _ in best], y=[value for _, value in best], mode="lines",
            name="best at the highest rung", line={"color": "#222", "shape": "hv"},
        )  # fmt: skip
    figure.update_layout(height=420, xaxis_title="trial", yaxis_title="score")
    return figure


def curves(data: TuningData) -> go.Figure:
    """Draw the score of each trial from rung to rung."""
    figure = go.Figure()
    for trial, colour in shades(data).items():
        own = data.trials[trial]
        figure.add_scatter(
            x=list(own.scores), y=list(own.scores.values()), name=f"trial {trial}",
            mode="lines+markers", line={"color": colour, "width": 3 if trial == 0 else 1.5},
            showlegend=trial == 0 or (data.best is not None and trial == data.best.number),
        )  # fmt: skip
    figure.update_layout(
        height=420, xaxis_title="rung, in rounds of the default trial", yaxis_title="score"
    )
    return figure


def parallel(data: TuningData, logarithms: Sequence[str]) -> go.Figure:
    """Draw each trial as a line through its values, in the colour of its score."""
    axes = parallel_axes(data, logarithms)
    figure = go.Figure()
    for trial, colour in shades(data).items():
        there = [(i, axis.places[trial]) for i, axis in enumerate(axes) if trial in axis.places]
        figure.add_scatter(
            x=[i for i, _ in there], y=[place for _, place in there], mode="lines+markers",
            line={"color": colour, "width": 1.5}, name=f"trial {trial}", showlegend=False,
            hovertemplate=_told(data.trials[trial]),
        )  # fmt: skip
    for i, axis in enumerate(axes):
        ends = axis.words or {0.0: axis.low, 1.0: axis.high}
        for place, text in ends.items():
            figure.add_annotation(
                x=i, y=place, text=text, showarrow=False, xshift=6, xanchor="left"
            )
        figure.add_vline(x=i, line={"color": "#bbb", "width": 1})
    figure.update_xaxes(
        tickvals=list(range(len(axes))),
        ticktext=[figure_text(axis.name) for axis in axes],
        range=[-0.2, len(axes) - 0.4],
        showgrid=False,
    )
    figure.update_yaxes(visible=False, range=[-0.1, 1.1])
    figure.update_layout(height=440)
    return figure


def importances(data: TuningData) -> go.Figure:
    """Draw how much each parameter matters."""
    figure = go.Figure()
    if data.importances:
        figure.add_bar(
            y=list(data.importances), x=list(data.importances.values()), orientation="h",
            marker={"color": PALETTE[0]},
        )  # fmt: skip
    figure.update_layout(height=140 + 30 * len(data.importances), xaxis_title="share")
    figure.update_yaxes(autorange="reversed")
    return figure


def budget(data: TuningData) -> go.Figure:
    """Draw the rounds that each trial had."""
    figure = go.Figure()
    for outcome, own in by_outcome(data).items():
        figure.add_bar(
            x=[t.number for t in own], y=[t.rounds for t in own], name=outcome,
            marker={"color": COLOURS[outcome]},
            customdata=[[t.megabytes, t.seconds / 60] for t in own],
            hovertemplate="trial %{x}: %{y:.4g} rounds<br>%{customdata[0]:.1f} MB, "
            "%{customdata[1]:.1f} minutes",
        )  # fmt: skip
    figure.update_layout(
        height=360, xaxis_title="trial", yaxis_title="rounds of the default trial", barmode="stack"
    )
    return figure


def by_outcome(data: TuningData) -> dict[str, list[ReportedTrial]]:
    """Return the trials of each outcome that there is."""
    found = {outcome: [t for t in data.trials if t.outcome == outcome] for outcome in OUTCOMES}
    return {outcome: own for outcome, own in found.items() if own}


def shades(data: TuningData) -> Mapping[int, str]:
    """Return a colour for each trial that has a score, by its rank."""
    scored = {t.number: t.score for t in data.trials if t.score is not None}
    ranked = sorted(scored, key=lambda number: scored[number])
    places = [i / max(1, len(ranked) - 1) for i in range(len(ranked))]
    shade = dict(zip(ranked, sample_colorscale(SCALE, places) if places else [], strict=True))
    return {number: shade[number] for number in sorted(shade)}


def _told(trial: ReportedTrial) -> str:
    values = "<br>".join(figure_text(f"{name} {value}") for name, value in trial.values.items())
    return f"trial {trial.number}, {trial.outcome}<br>{values}"
