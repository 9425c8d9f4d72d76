"""``tuning.png``: history, curves, parameters and budget of a tuning in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunetv2_federated.federation.files import replacing
from nnunetv2_federated.report.text import picture_text
from nnunetv2_federated.report.tuning_data import TuningData, best_so_far, parallel_axes
from nnunetv2_federated.report.tuning_figures import COLOURS, SCALE


def save_tuning_png(data: TuningData, path: Path, logarithms: Sequence[str]) -> None:
    """Draw a tuning.

    Parameters
    ----------
    data
        The study.
    path
        PNG file to write.
    logarithms
        Parameters whose logarithm is drawn.
    """
    # nnU-Net's own progress plot changes the fonts in matplotlib's settings
    with matplotlib.style.context("default"):
        figure = Figure(figsize=(13, 11), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplot_mosaic([["h", "c"], ["p", "p"], ["i", "b"]])
        _history(panels["h"], data)
        _curves(panels["c"], data)
        _parallel(panels["p"], data, logarithms)
        _importances(panels["i"], data)
        _budget(panels["b"], data)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110)


def _shades(data: TuningData) -> dict[int, tuple[float, float, float, float]]:
    """Return a colour for each trial that has a score, by its rank."""
    scored = {t.number: t.score for t in data.trials if t.score is not None}
    ranked = sorted(scored, key=lambda number: scored[number])
    scale = mpl.colormaps[SCALE.lower()]
    return {number: scale(i / max(1, len(ranked) - 1)) for i, number in enumerate(ranked)}


def _history(axes: Axes, data: TuningData) -> None:
    for outcome, colour in COLOURS.items():
        own = [(t.number, t.score) for t in data.trials if t.outcome == outcome and t.scores]
        if own:
            axes.plot(*zip(*own, strict=True), "o", color=colour, label=outcome)
    best = best_so_far(data)
    if best:
        label = "best at the highest rung"
        axes.step(*zip(*best, strict=True), where="post", color="#222", label=label)
    axes.set_title("score of each trial at the rung that it reached")
    axes.set_xlabel("trial")
    axes.set_ylabel("score")
    _finish(axes)


def _curves(axes: Axes, data: TuningData) -> None:
    for number, colour in _shades(data).items():
        scores = data.trials[number].scores
        label = "default" if number == 0 else None
        width = 3 if number == 0 else 1.2
        axes.plot(
            list(scores), list(scores.values()), ".-", color=colour, linewidth=width, label=label
        )
    axes.set_title("from rung to rung")
    axes.set_xlabel("rounds of the default trial")
    axes.set_ylabel("score")
    _finish(axes)


def _parallel(axes: Axes, data: TuningData, logarithms: Sequence[str]) -> None:
    columns = parallel_axes(data, logarithms)
    for number, colour in _shades(data).items():
        there = [(i, c.places[number]) for i, c in enumerate(columns) if number in c.places]
        axes.plot(*zip(*there, strict=True), ".-", color=colour, linewidth=1)
    for i, column in enumerate(columns):
        axes.axvline(i, color="#bbb", linewidth=0.8)
        for place, text in (column.words or {0.0: column.low, 1.0: column.high}).items():
            axes.annotate(picture_text(text), (i + 0.02, place), fontsize=8)
    axes.set_xticks(range(len(columns)), [picture_text(column.name) for column in columns])
    axes.set_yticks([])
    axes.set_title("values of each trial, the brightest is the best")


def _importances(axes: Axes, data: TuningData) -> None:
    names = list(data.importances)[::-1]
    axes.barh([picture_text(name) for name in names], [data.importances[name] for name in names])
    axes.set_title("importance of each parameter" if names else "importances: too few trials")


def _budget(axes: Axes, data: TuningData) -> None:
    for outcome, colour in COLOURS.items():
        own = [(t.number, t.rounds) for t in data.trials if t.outcome == outcome]
        if own:
            numbers, rounds = zip(*own, strict=True)
            axes.bar(numbers, rounds, color=colour, label=outcome)
    axes.set_title(f"rounds: {data.spent:.0f} of {data.full:.0f} that all in full would take")
    axes.set_xlabel("trial")
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small", frameon=False)
