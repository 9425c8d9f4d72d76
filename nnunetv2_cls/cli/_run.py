"""Run a command, and turn bad input into one line."""

from __future__ import annotations

import sys
from collections.abc import Callable

from nnunetv2_cls.errors import ClsError


def run_command(command: Callable[[], None]) -> None:
    """Run a command; end with one line on standard error and exit status 2 if its input is bad."""
    try:
        command()
    except ClsError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
