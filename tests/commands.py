"""Commands and workers as processes of their own, forked from one that has imported everything.

Importing PyTorch, nnU-Net and Flower takes a process some seconds, and the tests start hundreds.
The forks share nothing else: each command has its environment, folder and output, and the workers
that nnU-Net would spawn are forked, too.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from multiprocessing.context import BaseContext, ForkServerContext, ForkServerProcess
from multiprocessing.forkserver import _forkserver
from pathlib import Path
from typing import IO, Any


class _Worker(ForkServerProcess):
    """A worker in the environment and folder of who started it, as a spawned one is."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._place = (dict(os.environ), str(Path.cwd()))

    def run(self) -> None:
        environment, folder = self._place
        _go_to(environment, folder)
        super().run()


class _Forks(ForkServerContext):
    Process = _Worker


real_context = multiprocessing.get_context
_FORKS = _Forks()
_FORKS.set_forkserver_preload(
    [
        *(f"nnunetv2_federated.cli.{name}" for name in ("server", "site_process", "plan", "train")),
        *(f"nnunetv2_federated.experiment.{name}" for name in ("train", "resolve", "plan")),
    ]
)


def get_context(method: str | None = None) -> BaseContext:
    """Return what :func:`multiprocessing.get_context` does, but do not spawn: fork as above."""
    return _FORKS if method == "spawn" else real_context(method)


def _go_to(environment: Mapping[str, str], folder: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)


def _run(argv: list[str], environment: dict[str, str], folder: str, output: str) -> None:
    os.setpgid(0, 0)
    _go_to(environment, folder)
    setattr(multiprocessing, "get_context", get_context)  # noqa: B010  # mypy: overloaded
    # its workers come from the server that it was forked from itself, which it knows already
    setattr(_forkserver, "ensure_running", lambda: None)  # noqa: B010
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, output, os.O_WRONLY | os.O_APPEND | os.O_CREAT),
    ):
        file = os.open(path, flags, 0o644)
        os.dup2(file, number)
        os.close(file)
    os.dup2(1, 2)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  # multiprocessing has closed it
    sys.argv = argv[1:] if argv[0] == "-m" else argv
    if argv[0] == "-m":
        sys.modules.pop(argv[1], None)  # it is run anew, as __main__
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0:0] = [str(Path(argv[0]).parent)]
        runpy.run_path(argv[0], run_name="__main__")


class Command:
    """Like :class:`subprocess.Popen` of ``python ARGUMENTS``.

    Parameters
    ----------
    argv
        ``-m MODULE ARGUMENT...`` or ``SCRIPT ARGUMENT...``.
    environment, folder
        Its own.
    output
        File to which it appends what it says.
    """

    def __init__(
        self,
        argv: Sequence[str | Path],
        environment: Mapping[str, str],
        folder: Path,
        output: Path,
    ) -> None:
        own = (list(map(str, argv)), dict(environment), str(folder), str(output))
        self._process = _FORKS.Process(target=_run, args=own)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("command", timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.exitcode is None and self._process.pid is not None:
            os.kill(self._process.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_script(
    name: str, *arguments: str | Path, environment: Mapping[str, str], folder: Path
) -> None:
    """Run a command of this Python's environment, such as ``nnUNetv2_predict``, to its end."""
    output = folder / f"{name}.out"
    script = Path(sysconfig.get_path("scripts"), name)
    command = Command([script, *arguments], environment, folder, output)
    assert command.wait() == 0, output.read_text()


def start_forked(
    command: Sequence[str], *, env: Mapping[str, str], stdout: IO[str], **others: object
) -> Command:
    """Do what :class:`subprocess.Popen` does with a command of this Python, in a fork."""
    del others
    python, *arguments = command
    assert python == sys.executable
    return Command(arguments, env, Path.cwd(), Path(stdout.name))
