"""Text from others, before it is shown, logged or written into a table."""

from __future__ import annotations

import re
import unicodedata

LONGEST = 300
"""Characters of a text from outside that are kept."""

_FORMULA = re.compile(r"""(^|[;,])([\s"']*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])""")
"""Before what begins a formula, also in a spreadsheet that splits lines at another sign."""


def clean(text: object, longest: int = LONGEST) -> str:
    """Return one line without control characters, cut to ``longest`` characters.

    Escape sequences, line breaks and characters that reorder a line (Unicode categories C, Zl and
    Zp) become blanks. Markup is not touched: it is the writer's to escape for its own format.
    """
    line = " ".join(one_line(text, 4 * longest).split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def one_line(text: object, longest: int) -> str:
    """Return at most ``longest`` characters without control characters, blanks as they are."""
    return "".join(
        " " if unicodedata.category(c)[0] == "C" or unicodedata.category(c) in ("Zl", "Zp") else c
        for c in str(text)[:longest]
    )


def csv_cell(text: object) -> str:
    """Return a cell that no spreadsheet takes for a formula (OWASP, CSV injection).

    An apostrophe stands before what could begin one: at the start, and behind a sign at which a
    spreadsheet of another language would split the line.
    """
    return _FORMULA.sub(r"\1\2'", clean(text))
