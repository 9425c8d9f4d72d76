"""Run a command of ours; when it gets to certain places, somebody dies by kill -9.

Arguments: the process's name, a folder in the consortium's, and the module to run with its
arguments. The folder holds ``NAME.pid`` of each process, and for each place a folder of victims in
their order: ``NAME/MODULE:ATTRIBUTE/00_VICTIM``. A victim's file goes as it is killed.
"""

from __future__ import annotations

import functools
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def place(function: Callable[..., object], imported_by: ModuleType | None = None) -> str:
    """Name a place where somebody dies: as a method of its class or a function is called.

    A function that another module has imported is called by that module's name for it.
    """
    if imported_by is None:
        return f"{function.__module__}:{function.__qualname__}"
    name = function.__name__
    assert getattr(imported_by, name) is function
    return f"{imported_by.__name__}:{name}"


def find(name: str, folder: Path) -> int | None:
    """Return the process of that name, unless it is dead."""
    if name == "superlink":
        command = ["pgrep", "-f", f"flower-superlink .*{folder.parent}/"]
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
        return int(found[0]) if found else None
    pid = int((folder / f"{name}.pid").read_text())
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    return pid


def kill_next(victims: Path, folder: Path) -> None:
    for file in sorted(victims.iterdir())[:1]:
        pid = find(file.name[3:], folder)
        if pid is None:  # not back yet: another time
            return
        file.unlink()
        sys.stdout.write(f"{victims.name}: kill {file.name[3:]}\n")
        sys.stdout.flush()
        os.kill(pid, signal.SIGKILL)


def before(
    function: Callable[Parameters, Result], hook: Callable[[], None]
) -> Callable[Parameters, Result]:
    """Return the function, which calls the hook first."""

    @functools.wraps(function)
    def hooked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        hook()
        return function(*args, **kwargs)

    return hooked


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    del sys.argv[:3]
    (folder / f"{name}.pid").write_text(str(os.getpid()))
    for victims in (folder / name).glob("*:*"):
        module, _, path = victims.name.partition(":")
        *owners, attribute = path.split(".")
        owner = functools.reduce(getattr, owners, import_module(module))
        hook = functools.partial(kill_next, victims, folder)
        setattr(owner, attribute, before(getattr(owner, attribute), hook))
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
