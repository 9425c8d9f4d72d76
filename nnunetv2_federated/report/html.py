"""``report.html``: the report of a comparison in one file, which needs no network."""

from __future__ import annotations

import base64
import json
from dataclasses import fields
from pathlib import Path

from jinja2 import Environment, PackageLoader
from plotly.offline import get_plotlyjs

from nnunetv2_federated.federation.files import write_atomically
from nnunetv2_federated.federation.messages import SiteDescription, TrainReport
from nnunetv2_federated.federation.text import one_line
from nnunetv2_federated.report.comparison_data import ComparisonData, promises
from nnunetv2_federated.report.markdown import (
    SMALL_PRINT,
    difference_rows,
    headline_rows,
    held_back_rows,
    matrix_rows,
    sent_rows,
    versions,
)
from nnunetv2_federated.report.matplotlib_figures import draw_example
from nnunetv2_federated.report.plotly_figures import all_figures
from nnunetv2_federated.report.privacy_attacks import ATTACKED, membership_rows
from nnunetv2_federated.report.privacy_terms import PROMISED, privacy_rows
from nnunetv2_federated.report.verdict import verdict

_LONGEST_VALUE = 4000
"""Largest number of characters of one text in the page."""


def write_html(data: ComparisonData, path: Path) -> Path:
    """Write the page, with figures, their code and pictures within it; return its file."""
    figures = {
        name: figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            div_id=f"figure-{name}",
            config={"responsive": True, "displaylogo": False},
        )
        for name, figure in all_figures(data).items()
    }
    text = (
        templates()
        .get_template("report.html.j2")
        .render(
            data=data,
            small_print=SMALL_PRINT,
            verdict=verdict(data.differences),
            headline=headline_rows(data),
            matrix=matrix_rows(data),
            differences=difference_rows(data),
            held_back=held_back_rows(data),
            sent=sent_rows(data),
            promises=privacy_rows(promises(data.histories)),
            promised=PROMISED,
            attacks=membership_rows(data.attacks),
            attacked=ATTACKED,
            fields=[
                [f.name for f in fields(message)] for message in (SiteDescription, TrainReport)
            ],
            settings=[
                (name, value if isinstance(value, str) else json.dumps(value))
                for name, value in data.settings.items()
            ],
            versions=versions(data),
            figures=figures,
            examples=[
                (example, base64.b64encode(draw_example(example)).decode())
                for example in data.examples
            ],
            plotly=get_plotlyjs(),
        )
    )
    write_atomically(path, text)
    return path


def templates() -> Environment:
    """Return the templates of all pages, which clean and escape what they write."""
    return Environment(
        loader=PackageLoader(__package__ or __name__), autoescape=True, finalize=_shown
    )


def _shown(value: object) -> object:
    """Clean every text that the template writes, except for markup that is made here."""
    return value if hasattr(value, "__html__") else one_line(value, _LONGEST_VALUE)
