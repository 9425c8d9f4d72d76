"""How every command ends: with one line and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable

from nnunetv2_federated.federation.errors import FederationError
from nnunetv2_federated.federation.failure import explain


def run_command(command: Callable[[], None]) -> None:
    """Run a command; bad input is one line and exit status 2, a failed run status 1."""
    try:
        command()
    except (FederationError, OSError) as error:
        failure = explain(error)
        if failure is None:
            raise
        print(f"error: {failure.line}", file=sys.stderr)
        raise SystemExit(failure.status) from None
