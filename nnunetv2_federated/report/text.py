"""Escape text for pictures, figures and pages, each of which has signs with a meaning.

Names and reasons come from other machines, and so may the files of which reports are made. Every
text is escaped where it is drawn, whatever was done to it before.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from nnunetv2_federated.federation.text import clean

_LONGEST_LABEL = 40
_MARKDOWN = re.compile(
    r"""[\\`*\[\]<>|~&$]    # code, emphasis, links, pictures, tags, cells, entities, mathematics
    | (?<![^\W_])_ | _(?![^\W_])  # emphasis; between letters or digits it is none
    | ^\#                  # a heading
    | :(?=//) | (?<=www)\.  # an address that becomes a link by itself
    """,
    re.VERBOSE | re.IGNORECASE,
)


def picture_text(text: object) -> str:
    r"""Return a text for matplotlib, which reads ``$`` as mathematics.

    A text that begins with ``_``, which matplotlib leaves out of a legend, gets a blank before it.
    A long text is cut to leave room for the picture.
    """
    shown = clean(text, _LONGEST_LABEL).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def figure_text(text: object) -> str:
    """Return a text for Plotly, which reads tags in names, titles and categories."""
    return html.escape(clean(text), quote=False)


def markdown(text: object) -> str:
    """Return a text for Markdown in which nothing is a link, a picture, a tag or emphasis."""
    return _MARKDOWN.sub(lambda match: f"\\{match[0]}", clean(text))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; its cells are escaped, so that none is read as markup."""
    if not rows:
        return "None."
    lines = [header, *rows]
    written = ["| " + " | ".join(map(markdown, line)) + " |" for line in lines]
    return "\n".join([written[0], "| --- " * len(header) + "|", *written[1:]])
