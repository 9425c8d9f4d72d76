"""The report of an evaluation of trained models at sites: ``report.md`` and ``report.html``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from plotly.offline import get_plotlyjs

from nnunetv2_federated.federation.files import write_atomically
from nnunetv2_federated.federation.text import one_line
from nnunetv2_federated.report.evaluation_figure import means_figure
from nnunetv2_federated.report.evaluation_rows import (
    EvaluationReport,
    Rows,
    model_names,
    sections,
)
from nnunetv2_federated.report.text import markdown, markdown_table

_LONGEST_VALUE = 4000
_FIGURE: dict[str, Any] = {
    "full_html": False,
    "include_plotlyjs": False,
    "div_id": "figure-means",
    "config": {"responsive": True, "displaylogo": False},
}


def write_pages(report: EvaluationReport, folder: Path) -> Path:
    """Write both forms of the report; return the path of the HTML page."""
    title = "Evaluation of " + " and ".join(model_names(report))
    settings = [(name, _text(value)) for name, value in report.settings.items()]
    write_atomically(folder / "report.md", _markdown(title, sections(report), settings))
    figure = means_figure(report)
    templates = Environment(
        loader=PackageLoader(__package__ or __name__), autoescape=True, finalize=_shown
    )
    page = templates.get_template("evaluation.html.j2").render(
        title=title,
        sections=sections(report),
        settings=settings,
        figure=None if figure is None else figure.to_html(**_FIGURE),
        plotly=get_plotlyjs(),
    )
    write_atomically(folder / "report.html", page)
    return folder / "report.html"


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _markdown(
    title: str, parts: Sequence[tuple[str, Rows, str]], settings: Sequence[tuple[str, str]]
) -> str:
    texts = [f"# {markdown(title)}"]
    for name, rows, small_print in parts:
        texts += [f"## {name}", markdown_table(*rows), small_print]
    texts += ["## Settings", markdown_table(["", ""], [list(pair) for pair in settings])]
    return "\n\n".join(text for text in texts if text) + "\n"


def _shown(value: object) -> object:
    """Clean every text that the template writes, except for markup that is made here."""
    return value if hasattr(value, "__html__") else one_line(value, _LONGEST_VALUE)
