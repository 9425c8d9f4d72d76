"""Logs of a run in a file, a line for each record, whatever text of others is in it."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

from nnunetv2_federated.federation.text import one_line

LONGEST_LINE = 4000
"""Characters of a line put together here: a path may be long, and it may name many sites."""
_MOST_LINES = 200
"""Lines of a traceback that a log keeps."""


class LogFormatter(logging.Formatter):
    """Writes a log record as one line; the lines of a traceback follow, indented."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        own = copy.copy(record)
        own.exc_text = None  # another handler may have left it as it came
        return super().format(own)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """Format all but the traceback."""
        return one_line(super().formatMessage(record), LONGEST_LINE)

    def formatException(self, ei: Any) -> str:  # noqa: ANN401, N802  # logging's name and type
        """Format a traceback: its last lines are the error's own text."""
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802  # logging's name
        """Format where a record was made."""
        return _indented(super().formatStack(stack_info))


def _indented(text: str) -> str:
    lines = [one_line(line, LONGEST_LINE) for line in text.splitlines()]
    if len(lines) > _MOST_LINES:
        half = _MOST_LINES // 2
        lines = [*lines[:half], f"… {len(lines) - _MOST_LINES} lines …", *lines[-half:]]
    return "\n".join(f"    {line}" for line in lines)


class _LogFile(logging.FileHandler):
    """A log that may lack a line: a full disk is reported by what cannot go on without it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's
        """Print no traceback."""


def send_logs_to(path: Path) -> None:
    """Write everything Flower and this package log into a file instead of the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(path)
    handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("flwr", "nnunetv2_federated"):
        log = logging.getLogger(name)
        log.handlers[:] = [handler]
        log.propagate = False
        log.setLevel(logging.INFO)
