"""Result of one check, a row of a table of checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nnunetv2_federated.federation.errors import FederationError


@dataclass(frozen=True)
class Check:
    """Result of one check."""

    name: str
    """What was checked."""
    ok: bool
    """Whether the result is good."""
    detail: str
    """What was found; if that is not good, how to fix it."""
    notable: bool = False
    """Whether a training reports it too, although it is good: few users expect it."""


def run_check(name: str, find: Callable[[], str]) -> Check:
    """Run a check: good with the text that ``find`` returns, not good with the error it raises."""
    try:
        return Check(name, True, find())
    except (FederationError, OSError, RuntimeError) as error:
        return Check(name, False, " ".join(str(error).split()))
