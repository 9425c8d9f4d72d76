"""What a look at something found, for a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nnunetv2_federated.federation.errors import FederationError


@dataclass(frozen=True)
class Finding:
    """One row of a table: what was looked at, whether it is good, and what was seen."""

    what: str
    good: bool
    seen: str
    aloud: bool = False
    """Whether it is good, but more than one would expect, so that a training says it too."""


def look(what: str, find: Callable[[], str]) -> Finding:
    """Return what was found, or what it could not be found for."""
    try:
        return Finding(what, True, find())
    except (FederationError, OSError, RuntimeError) as error:
        return Finding(what, False, " ".join(str(error).split()))
