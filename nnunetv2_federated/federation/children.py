"""Processes that end with the one that started them, also if that is killed.

nnU-Net starts workers in three ways: augmentation is forked, preprocessing and export are spawned,
and we start whole commands. A worker that waits for work does not notice that nobody will send any.
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
"""What multiprocessing calls a process that it did not start."""


def end_workers_with_command() -> None:
    """Let every worker that multiprocessing starts from this process end when this one does.

    To be called where a command's module is imported, for a spawned worker imports that, too, and
    does so before it works. The command itself is left as it is.
    """
    if multiprocessing.current_process().name != _COMMAND:
        # imports take seconds; whose child this is multiprocessing tells only after them
        _in_background(_wait_for_another_parent, os.getppid())
    util.register_after_fork(end_with_parent, lambda end: end())


def end_with_parent() -> None:
    """Let this process end when the one that multiprocessing started it from does."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        # the kernel's own signal would come when the *thread* ends that started this process
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
    """Return what :class:`subprocess.Popen` is to call in a command so that it ends with us.

    The command gets SIGTERM when the thread ends that started it. ``None`` where there is no such
    thing: on Linux only.
    """
    if not sys.platform.startswith("linux"):
        return None
    parent = os.getpid()
    libc = ctypes.CDLL(None)

    def ask_kernel() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended in between
            os._exit(1)

    return ask_kernel
