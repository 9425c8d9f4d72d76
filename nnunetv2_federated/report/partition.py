"""A partition as a chart and as a table: the number of cases of each class at each site."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.report.text import picture_text

Counts = Mapping[str, Mapping[str, int]]
"""Number of cases by site and class."""

# Okabe and Ito's colours, which can be distinguished with every kind of colour vision
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")

INK, FAINT = "#333333", "#DDDDDD"


def plot_partition(counts: Counts, path: Path, title: str) -> None:
    """Draw a bar for each site, stacked by class, with the site's total at its end.

    Parameters
    ----------
    counts
        Number of cases by site and class; sites are drawn from top to bottom in this order.
    path
        PNG file to write.
    title
        Heading of the chart, for instance the dataset's name and the method.
    """
    # nnU-Net's own progress plot changes the fonts in matplotlib's settings
    with matplotlib.style.context("default"):
        _figure(counts, title).savefig(path, format="png")


def _figure(counts: Counts, title: str) -> Figure:
    classes = _classes(counts)
    rows = max(len(counts), len(classes))
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)  # inches
    figure = Figure(figsize=(9, 1.5 + 0.36 * max(rows, 4)), dpi=150, layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw_bars(axes, counts, classes)
    _style(axes, title)
    if classes:
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside right upper",
            title="class",
            frameon=False,
            fontsize=9,
            title_fontsize=9,
            alignment="left",
        )
    return figure


def partition_table(counts: Counts) -> str:
    """Return a table in plain text: a row for each site, a column for each class, and the sums."""
    classes = _classes(counts)
    header = ["site", *map(clean, classes), "total"]
    body = [
        [clean(site), *(str(row.get(name, 0)) for name in classes), str(sum(row.values()))]
        for site, row in counts.items()
    ]
    sums = [sum(row.get(name, 0) for row in counts.values()) for name in classes]
    footer = ["total", *map(str, sums), str(sum(sums))]
    widths = [max(map(len, cells)) for cells in zip(header, *body, footer, strict=True)]
    rule = "  ".join("-" * width for width in widths)
    lines = [_row(header, widths), rule, *(_row(row, widths) for row in body), rule]
    return "\n".join([*lines, _row(footer, widths)])


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    numbers = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
    return "  ".join([cells[0].ljust(widths[0]), *numbers])


def _classes(counts: Counts) -> list[str]:
    return sorted({name for of_site in counts.values() for name in of_site})


def _draw_bars(axes: Axes, counts: Counts, classes: Sequence[str]) -> None:
    totals = [sum(of_site.values()) for of_site in counts.values()]
    longest = max([1, *totals])
    positions = np.arange(len(counts))
    left = np.zeros(len(counts), dtype=int)
    for name, colour in zip(classes, _colours(len(classes)), strict=True):
        widths = np.array([of_site.get(name, 0) for of_site in counts.values()], dtype=int)
        # with blanks a long combination of labels breaks into lines, and the legend stays narrow
        lines = textwrap.wrap(clean(name, 80).replace("+", " + "), 26)
        axes.barh(
            positions,
            widths,
            0.72,
            left,
            color=colour,
            label="\n".join(map(picture_text, lines)),
            edgecolor="white",
            lw=0.8,
        )
        starts, left = left, left + widths
        for y, (width, start) in enumerate(zip(widths.tolist(), starts.tolist(), strict=True)):
            # only where a part of the bar is wide enough for its number
            if width >= 0.05 * longest:
                axes.text(
                    start + width / 2, y, str(width), ha="center", va="center", fontsize=8,
                    color=_ink_on(colour),
                )  # fmt: skip
    for y, total in enumerate(totals):
        axes.annotate(
            str(total), (total, y), (5, 0), textcoords="offset points", va="center",
            fontsize=10, fontweight="bold", color=INK,
        )  # fmt: skip
    axes.set_yticks(positions, [picture_text(site) for site in counts])
    axes.set_xlim(0, 1.08 * longest)
    axes.set_ylim(len(counts) - 0.4, -0.6)


def _style(axes: Axes, title: str) -> None:
    axes.set_title(
        picture_text(title), loc="left", fontsize=12, fontweight="bold", color=INK, pad=10
    )
    axes.set_xlabel("cases", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(length=0, colors=INK)
    axes.grid(axis="x", color=FAINT, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color(FAINT)


def _colours(number: int) -> list[str]:
    if number <= len(PALETTE):
        return list(PALETTE[:number])
    # more classes than can be distinguished by colour: a ramp at least keeps them in order
    return [to_hex(colour) for colour in colormaps["turbo"](np.linspace(0.05, 0.95, number))]


def _ink_on(colour: str) -> str:
    """Return white for a dark colour and dark for a light one, by luminance (ITU-R BT.709)."""
    red, green, blue = to_rgb(colour)
    return INK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.5 else "white"
