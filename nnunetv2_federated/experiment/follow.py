"""Rounds of a training in another process, followed in its log."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

_LOOK_SECONDS = 1.0
_ROUND = "round "
"""Beginning of a round's line, see :func:`.round_line.describe_round`."""


@contextlib.contextmanager
def rounds_passed_on(log: Path, say: Callable[[str], None] | None) -> Iterator[None]:
    """Pass on each line about a round that is appended to a log within the block.

    Parameters
    ----------
    log
        Log of the training; need not exist yet.
    say
        Called with each line; ``None`` to follow nothing.
    """
    if say is None:
        yield
        return
    follower = _Follower(log, say)
    follower.start()
    try:
        yield
    finally:
        follower.stop()


class _Follower(threading.Thread):
    """Reads what is appended to a file, until it is stopped."""

    def __init__(self, log: Path, say: Callable[[str], None]) -> None:
        super().__init__(daemon=True)
        self._log = log
        self._say = say
        self._read = log.stat().st_size if log.is_file() else 0
        """Bytes that were read, or were there before."""
        self._stopped = threading.Event()

    def run(self) -> None:
        """Look now and then, and once more at the end."""
        while not self._stopped.wait(_LOOK_SECONDS):
            self._look()
        self._look()

    def stop(self) -> None:
        """Pass on what is left, and end."""
        self._stopped.set()
        self.join()

    def _look(self) -> None:
        with contextlib.suppress(FileNotFoundError), self._log.open("rb") as file:
            file.seek(self._read)
            whole, newline, _ = file.read().rpartition(b"\n")
            self._read += len(whole) + len(newline)
            for line in whole.decode(errors="replace").splitlines():
                if line.startswith(_ROUND):
                    self._say(line)
