"""Environment variables and prints of nnU-Net, changed for a block of code."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables, and restore their earlier values at the end."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep nnU-Net's prints off the terminal; trainers write them to their log files as well."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
