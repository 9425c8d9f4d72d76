"""Text from others, before it is shown, logged or written into a table."""

from __future__ import annotations

import unicodedata

LONGEST = 300
"""Characters of a text from outside that are kept."""

_FORMULA = ("=", "+", "-", "@")


def clean(text: object, longest: int = LONGEST) -> str:
    """Return one line without control characters, cut to ``longest`` characters.

    Escape sequences, line breaks and characters that reorder a line (Unicode categories C, Zl and
    Zp) become blanks. Markup is not touched: it is the writer's to escape for its own format.
    """
    start = str(text)[: 4 * longest]
    shown = "".join(
        " " if unicodedata.category(c)[0] == "C" or unicodedata.category(c) in ("Zl", "Zp") else c
        for c in start
    )
    line = " ".join(shown.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def csv_cell(text: object) -> str:
    """Return a cell that no spreadsheet takes for a formula (OWASP, CSV injection)."""
    cell = clean(text)
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
