"""The report's PNGs: the matrix of models and sites, curves by round, and example cases."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nnunetv2_federated.report.comparison_data import ComparisonData, Example, Image, curve
from nnunetv2_federated.report.plotly_figures import colours, repeats
from nnunetv2_federated.report.text import picture_text

REFERENCE, PREDICTION = "#56B4E9", "#E69F00"
_MARKERS = ("", "o", "s", "^")
_SIDES = {
    "client side: models after local training, mean over sites": ("mean_site_{}",),
    "server side: the global model": ("global_model", "{}"),
}


def save_pictures(data: ComparisonData, folder: Path) -> list[str]:
    """Write the PNGs of ``report.md``; return the names of the files."""
    names = []
    # nnU-Net's own progress plot leaves its large fonts behind in matplotlib's settings
    with matplotlib.style.context("default"):
        for name, figure in (("matrix", _matrix(data)), ("curves", _curves(data))):
            if figure is not None:
                figure.savefig(folder / f"report_{name}.png", dpi=110)
                names.append(f"report_{name}.png")
    for number, example in enumerate(data.examples, 1):
        name = f"report_example_{number}.png"
        (folder / name).write_bytes(draw_example(example))
        names.append(name)
    return names


def draw_example(example: Example) -> bytes:
    """Return a PNG that shows a case once for each arm, with reference and prediction outlined."""
    with matplotlib.style.context("default"):
        number = len(example.predictions)
        height, width = example.image.shape
        figure = Figure(figsize=(2.2 * number, 2.2 * height / width + 0.75), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, number, squeeze=False)[0]
        for axes, (arm, (shown, mask)) in zip(panels, example.predictions.items(), strict=True):
            axes.imshow(example.image, cmap="gray")
            _outline(axes, example.reference, REFERENCE)
            _outline(axes, mask, PREDICTION)
            axes.set_title(f"{picture_text(arm)}\n{picture_text(shown)}", fontsize=8)
            axes.set_axis_off()
        if example.reference is not None:
            handles = [
                Line2D([], [], color=REFERENCE, label="reference"),
                Line2D([], [], color=PREDICTION, label="prediction"),
            ]
            figure.legend(
                handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False
            )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _outline(axes: Axes, mask: Image | None, colour: str) -> None:
    if mask is None:
        return
    for label in np.unique(mask[mask > 0]):
        # a border of zeros closes outlines that reach the edge
        padded = np.pad((mask == label).astype(float), 1)
        y, x = (np.arange(n) - 1 for n in padded.shape)
        axes.contour(x, y, padded, levels=[0.5], colors=colour, linewidths=1.2)


def _matrix(data: ComparisonData) -> Figure | None:
    arms, rows = data.matrix()
    if not arms:
        return None
    values = np.array(rows, float)  # None becomes NaN
    figure = Figure(
        figsize=(3 + 1.3 * len(data.groups), 1.4 + 0.42 * len(arms)), layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    picture = axes.imshow(values, cmap="Blues", aspect="auto")
    names = [
        f"{picture_text(g)}\n(external)" if g in data.external else picture_text(g)
        for g in data.groups
    ]
    axes.set_xticks(range(len(names)), names, fontsize=9)
    axes.set_yticks(range(len(arms)), [picture_text(a) for a in arms], fontsize=9)
    _write_values(axes, values)
    axes.set_title(
        f"{picture_text(data.headline)} of each model (row) at each site (column)", fontsize=10
    )
    figure.colorbar(picture)
    return figure


def _write_values(axes: Axes, values: NDArray[np.float64]) -> None:
    """Write each value into its cell, white on the dark half of the colour map."""
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (row, column), value in np.ndenumerate(values):
        text = "-" if np.isnan(value) else f"{value:.3f}"
        colour = "white" if value > middle else "black"  # NaN is not larger than anything
        axes.text(column, row, text, ha="center", va="center", color=colour)


def _curves(data: ComparisonData) -> Figure | None:
    sides = {title: keys for title, keys in _SIDES.items() if _has_values(data, keys)}
    if not sides:
        return None
    figure = Figure(figsize=(1 + 5 * len(sides), 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(2, len(sides), sharex=True, squeeze=False)
    for row, name in zip(panels, ("loss", "dice"), strict=True):
        for axes, keys in zip(row, sides.values(), strict=True):
            _draw_curves(axes, data, _with_name(keys, name))
            axes.set_ylabel(f"validation {name.replace('dice', 'Dice')}")
    for axes, title in zip(panels[0], sides, strict=True):
        axes.set_title(title)
    for axes in panels[1]:
        axes.set_xlabel("round")
        axes.set_ylim(0, 1)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 * len(sides), fontsize=8)
    return figure


def _with_name(keys: tuple[str, ...], name: str) -> list[str]:
    return [key.format(name) for key in keys]


def _has_values(data: ComparisonData, keys: tuple[str, ...]) -> bool:
    """Whether any arm has a loss under these keys of its rounds' records."""
    curves = (curve(data.histories, arm, *_with_name(keys, "loss")) for arm in data.arms)
    return any(mean is not None for _, means, _ in curves for mean in means)


def _draw_curves(axes: Axes, data: ComparisonData, keys: list[str]) -> None:
    """Draw a line for each arm, dashed unless it is a federation."""
    again = repeats(data.arms)
    for arm, colour in colours(data.arms).items():
        x, means, _ = curve(data.histories, arm, *keys)
        y = [np.nan if mean is None else mean for mean in means]
        style = "-" if arm.startswith("federated") else "--"
        marker = _MARKERS[again[arm] % len(_MARKERS)]
        axes.plot(x, y, style, marker=marker, markersize=5, color=colour, label=picture_text(arm))
    axes.grid(visible=True, alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
