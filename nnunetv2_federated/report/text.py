"""Text in a picture, a figure and a page: each has signs that mean something there.

Names and reasons come from other machines, and reports from files that may do so too. Every text
is made harmless where it is drawn, whatever was done to it before.
"""

from __future__ import annotations

import html
import re

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

    It also leaves out of a legend what begins with ``_``. A long text is cut, so that it leaves
    room for the picture.
    """
    shown = clean(text, _LONGEST_LABEL).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def figure_text(text: object) -> str:
    """Return a text for Plotly, which reads tags in names, titles and categories."""
    return html.escape(clean(text), quote=False)


def markdown(text: object) -> str:
    """Return a text for Markdown in which nothing is a link, a picture, a tag or emphasis."""
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", clean(text))
