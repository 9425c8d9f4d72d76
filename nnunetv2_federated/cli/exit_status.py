"""How every command ends: with one line and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable

from nnunetv2_federated.federation.disk import NO_ROOM, NOT_ALLOWED
from nnunetv2_federated.federation.errors import CheckpointError, FederationError, SettingsError
from nnunetv2_federated.federation.text import clean

_LONGEST = 4000
"""Characters of a line: a path may be long, and an error may name many sites."""


def run_command(command: Callable[[], None]) -> None:
    """Run a command; bad input is one line and exit status 2, a failed run status 1."""
    try:
        command()
    except FederationError as error:
        print(f"error: {clean(error, _LONGEST)}", file=sys.stderr)
        bad_input = isinstance(error, SettingsError | CheckpointError)
        raise SystemExit(2 if bad_input else 1) from None
    except OSError as error:
        if error.errno not in NO_ROOM | NOT_ALLOWED:
            raise
        print(f"error: {_refused(error)}", file=sys.stderr)
        raise SystemExit(1 if error.errno in NO_ROOM else 2) from None


def _refused(error: OSError) -> str:
    """Return one line about what a disk refused, where, and what to do."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in NO_ROOM:
        remedy = "make room, then give the same command again (a training with --c)"
        return clean(f"{where}{error.strerror}: {remedy}; what was finished is whole", _LONGEST)
    return clean(
        f"{where}{error.strerror}: let this user read and write there, or choose another folder",
        _LONGEST,
    )
