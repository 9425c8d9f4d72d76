"""Result of one check, a row of a table of checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nnunetv2_federated.federation.errors import FederationError


@dataclass(frozen=True)
class Finding:
    """Result of one check: what was checked, whether it is good, and what was seen."""

    what: str
    good: bool
    seen: str
    """What was seen; if that is not good, how to fix it."""
    notable: bool = False
    """Whether a training reports it too, although it is good: few users expect it."""


def look(what: str, find: Callable[[], str]) -> Finding:
    """Make a check: good with the text that ``find`` returns, not good with the error it raises."""
    try:
        return Finding(what, True, find())
    except (FederationError, OSError, RuntimeError) as error:
        return Finding(what, False, " ".join(str(error).split()))
