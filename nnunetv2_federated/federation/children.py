"""Processes that end with the process that started them, also if that is killed.

nnU-Net forks its augmentation workers and spawns those of preprocessing and export, and this
package starts whole commands. A worker that waits for work does not notice that its parent is gone,
and would wait for ever.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import connection, util

_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 1.0
_COMMAND = "MainProcess"
"""Name that multiprocessing gives a process that it did not start."""


def end_workers_with_command() -> None:
    """Make every worker that multiprocessing starts from this process end when this one does.

    Call it where a command's module is imported: a spawned worker imports that module as well,
    before it works. The command itself is not changed.
    """
    if multiprocessing.current_process().name != _COMMAND:
        # imports take seconds, and multiprocessing knows the parent of this process only after them
        _in_background(_wait_for_another_parent, os.getppid())
    util.register_after_fork(end_with_parent, lambda end: end())


def end_with_parent() -> None:
    """Make this process end when the one does that started it through multiprocessing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        # not PR_SET_PDEATHSIG: its signal comes when the *thread* ends that started this process
        _in_background(connection.wait, [parent.sentinel])


def _wait_for_another_parent(first: int) -> None:
    while os.getppid() == first:
        time.sleep(_LOOK_SECONDS)


def _in_background(wait: Callable[..., object], argument: object) -> None:
    def end() -> None:
        wait(argument)
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def die_with_parent() -> Callable[[], None] | None:
    """Return a ``preexec_fn`` for :class:`subprocess.Popen` with which a command ends with us.

    The command gets SIGTERM when the thread ends that started it. ``None`` on other systems than
    Linux, which have no such signal.
    """
    if not sys.platform.startswith("linux"):
        return None
    parent = os.getpid()
    libc = ctypes.CDLL(None)

    def ask_kernel() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent ended before the call above
            os._exit(1)

    return ask_kernel
