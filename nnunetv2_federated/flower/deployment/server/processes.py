"""Child processes that end with their parent."""

from __future__ import annotations

import logging
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunetv2_federated.federation.children import die_with_parent

logger = logging.getLogger(__name__)

_ONLY_THIS_USER = 0o077
_PAUSE_SECONDS = 1.0
_STOP_SECONDS = 20.0


class Child:
    """A command with a log file; on Linux it does not outlive its parent, however that ends.

    Its log is for this user only. It is started again if it is killed, by the kernel for want of
    memory for example.

    Parameters
    ----------
    command, environment
        Program with its arguments, and its environment variables.
    log
        File that its output is appended to.
    """

    def __init__(
        self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str]
    ) -> None:
        self._command = [str(part) for part in command]
        self._log = log
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._go_on = threading.Event()
        """Set when it is known what to do once the process has ended by itself."""
        self._stopped = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start it."""
        # the kernel ends the child with the thread that started it: that thread waits for it
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        started.wait()

    def keep_running(self) -> None:
        """Start it again also when it ends by itself, until it is stopped."""
        self._go_on.set()

    def failed(self) -> bool:
        """Whether it has ended by itself."""
        status = None if self._process is None else self._process.poll()
        return status is not None and status >= 0

    def last_line(self) -> str:
        """Return the last line of its log, to say why it ended."""
        lines = self._log.read_text(errors="replace").split("\n") if self._log.is_file() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")

    def stop(self) -> None:
        """Ask it to end, then make it."""
        with self._starting:
            self._stopped.set()
            self._go_on.set()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        if self._thread is not None:
            self._thread.join()

    def _run(self, started: threading.Event) -> None:
        while True:
            with self._starting, self._log.open("ab") as log:
                if self._stopped.is_set():
                    return
                try:
                    self._process = subprocess.Popen(  # noqa: S603  # Flower's own commands
                        self._command,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        stdin=subprocess.DEVNULL,
                        env=self._environment,
                        umask=_ONLY_THIS_USER,
                        preexec_fn=die_with_parent(),  # noqa: PLW1509  # one call of libc
                    )
                except OSError as error:  # absent, or no memory for it
                    log.write(f"{error}\n".encode())
                    return
                finally:
                    started.set()
            if self._process.wait() >= 0:
                self._go_on.wait()
            if self._stopped.is_set():
                return
            logger.error("%s ended: %s; starting it again", self._command[0], self.last_line())
            self._stopped.wait(_PAUSE_SECONDS)
