"""Train a run in a process of its own, which ends with this one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from nnunetv2_federated.federation.children import die_with_parent
from nnunetv2_federated.federation.files import write_atomically
from nnunetv2_federated.federation.run import RUN_FILE, Run

LOG_FILE = "train.log"


def start_training(
    run: Run, place: Path, environment: Mapping[str, str], *flags: str
) -> subprocess.Popen[bytes]:
    """Begin to train a run, or to continue it.

    Parameters
    ----------
    run
        Run to train.
    place
        Folder for the process's ``run.json`` and :data:`LOG_FILE`; created if missing.
    environment
        Environment of the process.
    *flags
        Flags of :mod:`.train_run`.
    """
    place.mkdir(parents=True, exist_ok=True)
    write_atomically(place / RUN_FILE, run.to_json())
    command = [sys.executable, "-m", "nnunetv2_federated.experiment.train_run", str(place), *flags]
    with (place / LOG_FILE).open("a") as log:
        # a module of ours and a folder of ours; descriptors stay open for the lock
        return subprocess.Popen(  # noqa: S603
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            close_fds=False,
            preexec_fn=die_with_parent(),  # noqa: PLW1509  # one call of libc
        )


def wait_for_training(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a process and return its status; end it if this one is interrupted."""
    try:
        return process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise


def reason_of_failure(place: Path, status: int) -> str:
    """Return the last line of a training's log that is not blank, without ``error: ``."""
    text = (place / LOG_FILE).read_text(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1].removeprefix("error: ") if lines else "") or f"exit status {status}"
