"""The interactive figures of a comparison, with Plotly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from nnunetv2_federated.report.comparison_data import Evidence, curve
from nnunetv2_federated.report.partition import PALETTE
from nnunetv2_federated.report.statistics import ALL_SITES
from nnunetv2_federated.report.text import figure_text

_FONT = "system-ui, sans-serif"
_SYMBOLS = ("circle", "square", "diamond", "x")


def colours(arms: Sequence[str]) -> dict[str, str]:
    """Give each arm a colour, the same in every figure."""
    return {arm: PALETTE[i % len(PALETTE)] for i, arm in enumerate(arms)}


def repeats(arms: Sequence[str]) -> dict[str, int]:
    """How often each arm's colour was given before: such arms are told apart by their markers."""
    return {arm: i // len(PALETTE) for i, arm in enumerate(arms)}


def all_figures(evidence: Evidence) -> dict[str, go.Figure]:
    """Draw every figure for which there are values, by name."""
    found = {
        "headline": headline(evidence),
        "matrix": matrix(evidence),
        "server": curves(evidence, "server side: the global model", ("global_model",), ""),
        "client": curves(evidence, "client side: mean over the sites", (), "mean_site_"),
        "sites": site_curves(evidence),
        "updates": updates(evidence),
        "distribution": distribution(evidence),
        "costs": costs(evidence),
    }
    return {name: _styled(figure) for name, figure in found.items() if figure.data}


def headline(evidence: Evidence) -> go.Figure:
    """Headline metric of every arm on all sites, with its spread."""
    figure = go.Figure()
    for arm, colour in colours(evidence.arms).items():
        value = evidence.cell(arm, ALL_SITES, evidence.headline)
        if value is not None:
            figure.add_scatter(
                x=[value.mean], y=[arm], name=arm, mode="markers", showlegend=False,
                marker={"color": colour, "size": 12},
                error_x={"type": "data", "array": [value.std or 0]},
            )  # fmt: skip
    figure.update_layout(
        height=120 + 34 * len(evidence.arms), xaxis_title=f"{evidence.headline}, all sites"
    )
    figure.update_yaxes(autorange="reversed")
    return figure


def matrix(evidence: Evidence) -> go.Figure:
    """Headline metric of every arm at every site."""
    arms = [arm for arm in evidence.arms if arm in evidence.cells]
    rows = [[evidence.cell(arm, g, evidence.headline) for g in evidence.groups] for arm in arms]
    figure = go.Figure()
    if rows:
        names = [f"{g} (external)" if g in evidence.external else g for g in evidence.groups]
        figure.add_heatmap(
            z=[[None if v is None else v.mean for v in row] for row in rows],
            x=names, y=arms, colorscale="Blues", colorbar={"title": evidence.headline},
            text=[["" if v is None else f"{v.mean:.3f}" for v in row] for row in rows],
            texttemplate="%{text}", xgap=2, ygap=2,
        )  # fmt: skip
    figure.update_layout(height=160 + 36 * len(arms))
    figure.update_yaxes(autorange="reversed")
    return figure


def curves(evidence: Evidence, title: str, prefix: tuple[str, ...], key: str) -> go.Figure:
    """Loss and Dice by round, a line for each arm."""
    figure = make_subplots(1, 2, subplot_titles=("validation loss", "validation Dice"))
    again = repeats(evidence.arms)
    for arm, colour in colours(evidence.arms).items():
        for column, name in enumerate(("loss", "dice"), 1):
            x, y, std = curve(evidence.histories, arm, *prefix, key + name)
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


def site_curves(evidence: Evidence) -> go.Figure:
    """Dice by round at each site, of the first federation: local models and global model."""
    figure = make_subplots(1, 2, subplot_titles=("after local training", "global model"))
    arm, sites = _first_federation(evidence)
    for site, colour in colours(sites).items():
        for column, prefix in enumerate(((), ("global_model",)), 1):
            x, y, _ = curve(evidence.histories, arm, *prefix, "sites", site, "dice")
            if any(value is not None for value in y):
                figure.add_scatter(
                    x=x, y=y, name=site, legendgroup=site, showlegend=column == 1,
                    mode="lines+markers" if len(x) < 30 else "lines", connectgaps=True,
                    line={"color": colour}, row=1, col=column,
                )  # fmt: skip
    figure.update_xaxes(title="round")
    figure.update_layout(title=f"{arm}: Dice at each site", height=420)
    return figure


def updates(evidence: Evidence) -> go.Figure:
    """Norms and cosines of the sites' updates by round, of the first federation."""
    titles = ("norm of the update", "cosine with the mean of the others")
    figure = make_subplots(1, 2, subplot_titles=titles)
    arm, sites = _first_federation(evidence)
    for site, colour in colours(sites).items():
        for column, name in enumerate(("norm", "cosine"), 1):
            x, y, _ = curve(evidence.histories, arm, "updates", site, name)
            if any(value is not None for value in y):
                figure.add_scatter(
                    x=x, y=y, name=site, legendgroup=site, showlegend=column == 1,
                    mode="lines+markers" if len(x) < 30 else "lines", connectgaps=True,
                    line={"color": colour}, row=1, col=column,
                )  # fmt: skip
    figure.update_xaxes(title="round")
    figure.update_yaxes(type="log", row=1, col=1)
    figure.update_yaxes(range=[-1.05, 1.05], row=1, col=2)
    figure.update_layout(title=f"{arm}: the sites' updates", height=420)
    return figure


def _first_federation(evidence: Evidence) -> tuple[str, list[str]]:
    """Return the name of the first federated arm, and its sites."""
    arm = next((arm for arm in evidence.arms if arm.startswith("federated/")), "")
    found = [h for (name, _, _), h in evidence.histories.items() if name == arm]
    return arm, list(found[0].sites) if found else []


def distribution(evidence: Evidence) -> go.Figure:
    """Cases of each class at each site."""
    classes = sorted({name for own in evidence.counts.values() for name in own})
    sites = list(evidence.counts)
    figure = go.Figure()
    for name, colour in colours(classes).items():
        figure.add_bar(
            y=sites, x=[evidence.counts[s].get(name, 0) for s in sites], name=name,
            orientation="h", marker={"color": colour},
        )  # fmt: skip
    figure.update_layout(barmode="stack", height=150 + 28 * len(sites), xaxis_title="cases")
    figure.update_yaxes(autorange="reversed")
    return figure


def costs(evidence: Evidence) -> go.Figure:
    """MiB and seconds of every round of the federations."""
    figure = make_subplots(1, 2, subplot_titles=("MiB of a round", "seconds of a round"))
    for arm, colour in colours(evidence.arms).items():
        if not arm.startswith("federated/"):
            continue
        for column, keys, name, dash in (
            (1, ("bytes_up",), "up", "solid"),
            (1, ("bytes_down",), "down", "dot"),
            (2, ("seconds", "round"), "whole round", "solid"),
            (2, ("seconds", "training"), "training", "dot"),
        ):
            x, y, _ = curve(evidence.histories, arm, *keys)
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
    """Let no name, category or title be read as tags."""
    for trace in figure.data:
        for key in ("name", "legendgroup", "x", "y"):
            value = trace[key]
            if isinstance(value, str):
                trace[key] = figure_text(value)
            elif value is not None:
                trace[key] = [figure_text(v) if isinstance(v, str) else v for v in value]
    titles = [figure.layout.title, *figure.layout.annotations]
    titles += [axis.title for axis in (*figure.select_xaxes(), *figure.select_yaxes())]
    titles += [trace.colorbar.title for trace in figure.select_traces({"type": "heatmap"})]
    for title in titles:
        if title.text:
            title.text = figure_text(title.text)


def _dash(arm: str) -> str:
    return {"federated": "solid", "centralised": "dash"}.get(arm.partition("/")[0], "dot")


def _styled(figure: Any) -> go.Figure:  # noqa: ANN401  # Plotly has no types
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
