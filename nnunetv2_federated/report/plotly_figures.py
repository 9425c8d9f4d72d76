"""The interactive figures of a comparison, with Plotly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from nnunetv2_federated.report.comparison_data import ComparisonData, curve
from nnunetv2_federated.report.partition import PALETTE
from nnunetv2_federated.report.statistics import ALL_SITES
from nnunetv2_federated.report.text import figure_text

_FONT = "system-ui, sans-serif"
_SYMBOLS = ("circle", "square", "diamond", "x")


def colours(arms: Sequence[str]) -> dict[str, str]:
    """Return the colour of each arm, the same in every figure."""
    return {arm: PALETTE[i % len(PALETTE)] for i, arm in enumerate(arms)}


def repeats(arms: Sequence[str]) -> dict[str, int]:
    """Return how many earlier arms have each arm's colour: markers distinguish them."""
    return {arm: i // len(PALETTE) for i, arm in enumerate(arms)}


def all_figures(data: ComparisonData) -> dict[str, go.Figure]:
    """Return every figure that has values, by name."""
    figures = {
        "headline": headline(data),
        "matrix": matrix(data),
        "server": curves(data, "server side: the global model", ("global_model",), ""),
        "client": curves(data, "client side: mean over the sites", (), "mean_site_"),
        "sites": site_curves(data),
        "updates": updates(data),
        "distribution": distribution(data),
        "costs": costs(data),
    }
    return {name: styled(figure) for name, figure in figures.items() if figure.data}


def headline(data: ComparisonData) -> go.Figure:
    """Draw the headline metric of every arm on all sites, with its spread."""
    figure = go.Figure()
    for arm, colour in colours(data.arms).items():
        value = data.cell(arm, ALL_SITES, data.headline)
        if value is not None:
            figure.add_scatter(
                x=[value.mean], y=[arm], name=arm, mode="markers", showlegend=False,
                marker={"color": colour, "size": 12},
                error_x={"type": "data", "array": [value.std or 0]},
            )  # fmt: skip
    figure.update_layout(
        height=120 + 34 * len(data.arms), xaxis_title=f"{data.headline}, all sites"
    )
    figure.update_yaxes(autorange="reversed")
    return figure


def matrix(data: ComparisonData) -> go.Figure:
    """Draw the headline metric of every arm at every site."""
    arms, rows = data.matrix()
    figure = go.Figure()
    if rows:
        names = [f"{g} (external)" if g in data.external else g for g in data.groups]
        figure.add_heatmap(
            z=rows, x=names, y=arms, colorscale="Blues", colorbar={"title": data.headline},
            text=[["" if value is None else f"{value:.3f}" for value in row] for row in rows],
            texttemplate="%{text}", xgap=2, ygap=2,
        )  # fmt: skip
    figure.update_layout(height=160 + 36 * len(arms))
    figure.update_yaxes(autorange="reversed")
    return figure


def curves(data: ComparisonData, title: str, prefix: tuple[str, ...], key: str) -> go.Figure:
    """Draw loss and Dice by round, a line for each arm.

    Parameters
    ----------
    data
        What the report shows.
    title
        Title of the figure.
    prefix, key
        Keys of the values in a round's record: ``prefix``, then ``key`` with ``loss`` or ``dice``.
    """
    figure = make_subplots(1, 2, subplot_titles=("validation loss", "validation Dice"))
    again = repeats(data.arms)
    for arm, colour in colours(data.arms).items():
        for column, name in enumerate(("loss", "dice"), 1):
            x, y, std = curve(data.histories, arm, *prefix, key + name)
            if any(value is not None for value in y):
                figure.add_scatter(
                    x=x, y=y, name=arm, legendgroup=arm, showlegend=column == 2,
                    mode="lines+markers" if len(x) < 30 or again[arm] else "lines",
                    line={"color": colour, "dash": _dash(arm)}, row=1, col=column,
                    marker={"symbol": _SYMBOLS[again[arm] % len(_SYMBOLS)], "size": 8},
                    customdata=[None if s is None else f" ± {s:.4f}" for s in std],
                    hovertemplate="round %{x}: %{y:.4f}%{customdata}",
                )  # fmt: skip
    figure.update_xaxes(title="round")
    figure.update_layout(title=title, height=420)
    return figure


def site_curves(data: ComparisonData) -> go.Figure:
    """Draw Dice by round at each site, of local and global models of the first federation."""
    return _at_sites(
        data,
        "Dice at each site",
        {
            "after local training": lambda site: ("sites", site, "dice"),
            "global model": lambda site: ("global_model", "sites", site, "dice"),
        },
    )


def updates(data: ComparisonData) -> go.Figure:
    """Draw norms and cosines of the sites' updates by round, of the first federation."""
    figure = _at_sites(
        data,
        "the sites' updates",
        {
            "norm of the update": lambda site: ("updates", site, "norm"),
            "cosine with the mean of the others": lambda site: ("updates", site, "cosine"),
        },
    )
    figure.update_yaxes(type="log", row=1, col=1)
    figure.update_yaxes(range=[-1.05, 1.05], row=1, col=2)
    return figure


def _at_sites(
    data: ComparisonData, title: str, panels: Mapping[str, Callable[[str], tuple[str, ...]]]
) -> go.Figure:
    """Draw a line for each site of the first federation.

    Parameters
    ----------
    data
        What the report shows.
    title
        Title of the figure, after the name of the federation.
    panels
        Titles of the panels, each with a function that returns, for the name of a site, the keys of
        its value in a round's record.
    """
    figure = make_subplots(1, 2, subplot_titles=tuple(panels))
    arm, sites = _first_federation(data)
    for site, colour in colours(sites).items():
        for column, keys_of in enumerate(panels.values(), 1):
            x, y, _ = curve(data.histories, arm, *keys_of(site))
            if any(value is not None for value in y):
                figure.add_scatter(
                    x=x, y=y, name=site, legendgroup=site, showlegend=column == 1,
                    mode="lines+markers" if len(x) < 30 else "lines", connectgaps=True,
                    line={"color": colour}, row=1, col=column,
                )  # fmt: skip
    figure.update_xaxes(title="round")
    figure.update_layout(title=f"{arm}: {title}", height=420)
    return figure


def _first_federation(data: ComparisonData) -> tuple[str, list[str]]:
    """Return the name of the first federated arm, and its sites."""
    arm = next((arm for arm in data.arms if arm.startswith("federated/")), "")
    runs = [history for (name, _, _), history in data.histories.items() if name == arm]
    return arm, list(runs[0].sites) if runs else []


def distribution(data: ComparisonData) -> go.Figure:
    """Draw the cases of each class at each site."""
    classes = sorted({name for classes in data.counts.values() for name in classes})
    sites = list(data.counts)
    figure = go.Figure()
    for name, colour in colours(classes).items():
        figure.add_bar(
            y=sites, x=[data.counts[s].get(name, 0) for s in sites], name=name,
            orientation="h", marker={"color": colour},
        )  # fmt: skip
    figure.update_layout(barmode="stack", height=150 + 28 * len(sites), xaxis_title="cases")
    figure.update_yaxes(autorange="reversed")
    return figure


def costs(data: ComparisonData) -> go.Figure:
    """Draw MiB and seconds of every round of the federations."""
    figure = make_subplots(1, 2, subplot_titles=("MiB of a round", "seconds of a round"))
    for arm, colour in colours(data.arms).items():
        if not arm.startswith("federated/"):
            continue
        for column, keys, name, dash in (
            (1, ("bytes_up",), "up", "solid"),
            (1, ("bytes_down",), "down", "dot"),
            (2, ("seconds", "round"), "whole round", "solid"),
            (2, ("seconds", "training"), "training", "dot"),
        ):
            x, y, _ = curve(data.histories, arm, *keys)
            scale = 2**20 if column == 1 else 1
            figure.add_scatter(
                x=x, y=[None if v is None else v / scale for v in y], name=f"{arm}: {name}",
                mode="lines", line={"color": colour, "dash": dash}, row=1, col=column,
            )  # fmt: skip
    figure.update_xaxes(title="round")
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(height=400)
    return figure


def _escape(figure: Any) -> None:  # noqa: ANN401  # Plotly has no types
    """Escape every name, category and title, so that none is read as tags."""
    for trace in figure.data:
        for key in ("name", "legendgroup", "x", "y"):
            trace[key] = _escaped(trace[key])
    titles = [figure.layout.title, *figure.layout.annotations]
    titles += [axis.title for axis in (*figure.select_xaxes(), *figure.select_yaxes())]
    titles += [trace.colorbar.title for trace in figure.select_traces({"type": "heatmap"})]
    for title in titles:
        title.text = _escaped(title.text)


def _escaped(value: Any) -> Any:  # noqa: ANN401  # a text, numbers or categories
    if value is None:
        return None
    if isinstance(value, str):
        return figure_text(value)
    return [figure_text(item) if isinstance(item, str) else item for item in value]


def _dash(arm: str) -> str:
    return {"federated": "solid", "centralised": "dash"}.get(arm.partition("/")[0], "dot")


def styled(figure: Any) -> go.Figure:  # noqa: ANN401  # Plotly has no types
    """Return a figure in the style of all, with every name, category and title escaped."""
    figure.update_layout(
        template="plotly_white",
        font={"family": _FONT, "size": 13},
        margin={"l": 10, "r": 10, "t": 90, "b": 40},
        legend={"orientation": "h", "y": -0.22},
        hovermode="closest",
        autosize=True,
    )
    _escape(figure)
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    # rounds are whole numbers
    longest = max(
        (len(trace.x or ()) for trace in figure.data if trace.type == "scatter"), default=0
    )
    figure.update_xaxes(dtick=1 if longest <= 10 else None, selector={"title.text": "round"})
    return figure
