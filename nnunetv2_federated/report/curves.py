"""``federation.png``: loss and Dice by round, at the sites and of the global model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_THIN = {"linewidth": 0.8, "alpha": 0.55}
_SITE_COLOURS = [f"C{i}" for i in range(10)]


def _series(rounds: Sequence[Mapping[str, Any]], *keys: str) -> tuple[list[int], list[float]]:
    """Round numbers (counted from 1) and values, where there is a value."""
    points = []
    for record in rounds:
        value: Any = record
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            points.append((int(record["round"]) + 1, float(value)))
    return [x for x, _ in points], [y for _, y in points]


def _panel(
    axes: Axes,
    rounds: Sequence[Mapping[str, Any]],
    sites: Sequence[str],
    path: Sequence[str],
    mean: str,
    pooled: str,
    label: str,
) -> None:
    *prefix, last = path
    for index, site in enumerate(sites):
        x, y = _series(rounds, *prefix, "sites", site, last)
        colour = _SITE_COLOURS[index % len(_SITE_COLOURS)]
        axes.plot(x, y, color=colour, label=site if len(sites) <= 10 else None, **_THIN)
    x, y = _series(rounds, *prefix, mean)
    axes.plot(x, y, color="black", linewidth=2, marker="." if len(x) < 30 else None, label=pooled)
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)


def plot_federation(rounds: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the curves of ``federation.json``.

    Client side is the mean over sites of the locally trained models, server side the global model
    validated at the sites; a thin line for each site.

    Parameters
    ----------
    rounds
        The list ``rounds`` of ``federation.json``.
    path
        PNG to write.
    """
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2, sharex=True)
    sites = sorted({site for record in rounds for site in record["sites"]})
    _panel(
        panels[0][0],
        rounds,
        sites,
        ["loss"],
        "mean_site_loss",
        "mean over sites",
        "validation loss",
    )
    _panel(
        panels[1][0],
        rounds,
        sites,
        ["dice"],
        "mean_site_dice",
        "mean over sites",
        "validation Dice",
    )
    _panel(
        panels[0][1],
        rounds,
        sites,
        ["global_model", "loss"],
        "loss",
        "all sites pooled",
        "validation loss",
    )
    _panel(
        panels[1][1],
        rounds,
        sites,
        ["global_model", "dice"],
        "dice",
        "all sites pooled",
        "validation Dice",
    )
    panels[0][0].set_title("client side: models after local training")
    panels[0][1].set_title("server side: the global model")
    for axes in panels[1]:
        axes.set_xlabel("round")
        axes.set_ylim(0, 1)
    for axes in panels[0]:
        axes.legend(fontsize="small", ncols=2)
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png", dpi=110)
    temporary.replace(path)
