"""What several commands do with the machine they run on."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def stopping_as_interrupt() -> Iterator[None]:
    """Let a service manager's SIGTERM end a command as Ctrl-C does.

    It ends workers forked within as ever: a handler of Python's would never run in one that waits
    for work, and the pool that ends it would wait for ever.
    """

    def interrupt(number: int, frame: object) -> None:
        del number, frame
        raise KeyboardInterrupt

    def undo_in_child() -> None:
        if signal.getsignal(signal.SIGTERM) is interrupt:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
        os.register_at_fork(after_in_child=undo_in_child)
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
