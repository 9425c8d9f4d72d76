"""What a process says that ends with an error, and its exit status."""

from __future__ import annotations

from dataclasses import dataclass

from nnunetv2_federated.federation.disk import NO_ROOM, NOT_ALLOWED
from nnunetv2_federated.federation.errors import CheckpointError, FederationError, SettingsError
from nnunetv2_federated.federation.logs import LONGEST_LINE
from nnunetv2_federated.federation.text import clean


@dataclass(frozen=True)
class Failure:
    """One line, and the exit status of the process."""

    line: str
    status: int
    """2 for bad input, found before training; 1 for a run that failed."""


def explain(error: FederationError | OSError) -> Failure | None:
    """Return what to say of an error; ``None`` if it is of no known kind.

    Parameters
    ----------
    error
        Error that ends a process. Of errors of the system those of a full or write-protected disk
        are known.
    """
    if isinstance(error, FederationError):
        bad_input = isinstance(error, SettingsError | CheckpointError)
        return Failure(clean(error, LONGEST_LINE), 2 if bad_input else 1)
    if error.errno not in NO_ROOM | NOT_ALLOWED:
        return None
    no_room = error.errno in NO_ROOM
    where = f"{error.filename}: " if error.filename else ""
    remedy = (
        "make room, then give the same command again (a training with --c); what was finished is "
        "whole"
        if no_room
        else "let this user read and write there, or choose another folder"
    )
    line = clean(f"{where}{error.strerror}: {remedy}", LONGEST_LINE)
    return Failure(line, 1 if no_room else 2)
