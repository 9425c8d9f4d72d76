"""``federation.png``: loss and Dice by round at the sites and of the global model, and updates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunetv2_federated.federation.files import replacing
from nnunetv2_federated.federation.history import RoundRecord, look_up
from nnunetv2_federated.report.text import picture_text


def _series(rounds: Sequence[RoundRecord], *names: str) -> tuple[list[int], list[float]]:
    """Return round numbers (counted from 1) and values, where there is a value."""
    points = [(record.round + 1, look_up(record, *names)) for record in rounds]
    known = [(x, y) for x, y in points if y is not None]
    return [x for x, _ in known], [y for _, y in known]


def _panel(
    axes: Axes,
    rounds: Sequence[RoundRecord],
    sites: Sequence[str],
    keys: tuple[str, ...],
    summary: tuple[str, str],
) -> None:
    """Draw a thin line for each site and a bold one for their summary.

    Parameters
    ----------
    axes
        Panel to draw into.
    rounds
        Records of the rounds.
    sites
        Names of the sites.
    keys
        Keys of a value in a record; ``sites`` and the name of the site come before the last.
    summary
        Key of the summary beside the first of ``keys``, and its label.
    """
    *prefix, last = keys
    for index, site in enumerate(sites):
        x, y = _series(rounds, *prefix, "sites", site, last)
        name = picture_text(site) if len(sites) <= 10 else None
        axes.plot(x, y, color=_colour(index), linewidth=0.8, alpha=0.6, label=name)
    x, y = _series(rounds, *prefix, summary[0])
    marker = "." if len(x) < 30 else None
    axes.plot(x, y, color="black", linewidth=2, marker=marker, label=summary[1])
    axes.grid(visible=True, alpha=0.3)


def _colour(index: int) -> str:
    return f"C{index % 10}"


def _update_panels(
    norms: Axes, cosines: Axes, rounds: Sequence[RoundRecord], sites: Sequence[str]
) -> None:
    """Draw norms and cosines of updates, with a cross where an update was clipped or refused."""
    for index, site in enumerate(sites):
        colour = _colour(index)
        for axes, key in ((norms, "norm"), (cosines, "cosine")):
            x, y = _series(rounds, "updates", site, key)
            axes.plot(x, y, ".-" if len(x) < 30 else "-", color=colour, linewidth=0.8, alpha=0.6)
        odd = [r for r in rounds if _outcome(r, site) in ("clipped", "refused")]
        x, y = _series(odd, "updates", site, "norm")
        if x:
            label = picture_text(site) if len(sites) <= 10 else None
            norms.plot(x, y, "x", color=colour, markersize=8, label=label)
    norms.set_yscale("symlog", linthresh=1e-3)
    norms.set_ylabel("norm of updates")
    if norms.get_legend_handles_labels()[0]:
        norms.legend(fontsize="small", ncols=2, title="refused or clipped", title_fontsize="small")
    cosines.set_ylabel("cosine with the other sites' mean")
    cosines.set_ylim(-1.05, 1.05)
    for axes in (norms, cosines):
        axes.grid(visible=True, alpha=0.3)


def _outcome(record: RoundRecord, site: str) -> str | None:
    update = record.updates.get(site)
    return None if update is None else update.outcome


def plot_federation(rounds: Sequence[RoundRecord], path: Path) -> None:
    """Draw the curves of ``federation.json``.

    Client side is the mean over sites of the locally trained models, server side the global model
    validated at the sites; a thin line for each site. Below them the norms of the sites' updates
    and their cosines, if the records have them.

    Parameters
    ----------
    rounds
        Rounds of a :class:`.History`.
    path
        PNG file to write.
    """
    # nnU-Net's own progress plot changes the fonts in matplotlib's settings
    with matplotlib.style.context("default"):
        figure = _draw(rounds)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110)


def _draw(rounds: Sequence[RoundRecord]) -> Figure:
    updates = {site for record in rounds for site in record.updates}
    sites = sorted(updates | {site for record in rounds for site in record.sites})
    rows = 3 if updates else 2
    figure = Figure(figsize=(11, 3.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, 2, sharex=True)
    mean, pooled = "mean over sites", "all sites pooled"
    _panel(panels[0][0], rounds, sites, ("loss",), ("mean_site_loss", mean))
    _panel(panels[1][0], rounds, sites, ("dice",), ("mean_site_dice", mean))
    _panel(panels[0][1], rounds, sites, ("global_model", "loss"), ("loss", pooled))
    _panel(panels[1][1], rounds, sites, ("global_model", "dice"), ("dice", pooled))
    panels[0][0].set_title("client side: models after local training")
    panels[0][1].set_title("server side: the global model")
    for axes in panels[0]:
        axes.set_ylabel("validation loss")
        axes.legend(fontsize="small", ncols=2)
    for axes in panels[1]:
        axes.set_ylabel("validation Dice")
        axes.set_ylim(0, 1)
    if updates:
        _update_panels(panels[2][0], panels[2][1], rounds, sites)
    for axes in panels[-1]:
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
