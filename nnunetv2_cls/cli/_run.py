"""How commands end."""

from __future__ import annotations

import sys
from collections.abc import Callable

from nnunetv2_cls.errors import ClsError


def run_command(command: Callable[[], None]) -> None:
    """Run a command; bad input is one line and exit status 2."""
    try:
        command()
    except ClsError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
