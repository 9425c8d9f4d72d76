"""Text before it is shown, logged or written into a table: cleaned, and long lists cut short."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable

LONGEST = 300
"""Characters of a text from outside that are kept."""
_MOST_NAMES = 3

_FORMULA = re.compile(r"""(^|[;,])([\s"']*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])""")
"""Position before what begins a formula, also where a spreadsheet splits lines at ``;``."""


def clean(text: object, longest: int = LONGEST) -> str:
    """Return one line without control characters, cut to ``longest`` characters.

    Escape sequences, line breaks and characters that reorder a line (Unicode categories C, Zl and
    Zp) become blanks. Markup is not touched: each writer escapes it for its own format.
    """
    line = " ".join(one_line(text, 4 * longest).split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def both_ends(text: object, longest: int = LONGEST) -> str:
    """Return a cleaned text; of a long one its two ends, as a traceback says why at its end."""
    whole = str(text)
    if len(whole) <= longest:
        return clean(whole, longest)
    first = longest // 3
    return f"{clean(whole[:first], first)} … {clean(whole[first + 3 - longest :], longest)}"


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


def few(names: Iterable[str]) -> str:
    """Return the first three names and the number of the others: ``a, b, c and 2 more``."""
    listed = list(names)
    shown = ", ".join(listed[:_MOST_NAMES])
    more = len(listed) - _MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def some_cases(cases: Collection[str]) -> str:
    """Count cases and name the first three in alphabetical order: ``2 cases (a, b)``."""
    return f"{len(cases)} case{'s' if len(cases) != 1 else ''} ({few(sorted(cases))})"
