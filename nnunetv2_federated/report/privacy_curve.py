"""Epsilon against rounds, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunetv2_federated.federation.files import replacing
from nnunetv2_federated.report.text import picture_text


def plot_privacy_curve(
    rounds: Sequence[int], curves: Mapping[str, Sequence[float]], path: Path, title: str
) -> None:
    """Draw epsilon by the number of rounds.

    Parameters
    ----------
    rounds
        Numbers of rounds, in ascending order.
    curves
        Epsilon after each of these, by what is said of it in the legend.
    path
        PNG file to write.
    title
        Heading of the picture.
    """
    # nnU-Net's own progress plot changes the fonts in matplotlib's settings
    with matplotlib.style.context("default"):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for name, epsilons in curves.items():
            axes.plot(rounds, epsilons, "o-", markersize=3, label=picture_text(name))
        axes.set_title(title.replace("$", r"\$"), fontsize=10)
        axes.set_xlabel("round")
        axes.set_ylabel("epsilon")
        axes.set_xlim(0, None)
        axes.set_ylim(0, None)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=True, alpha=0.3)
        axes.legend(frameon=False)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110)
