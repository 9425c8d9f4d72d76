"""Several trainings at a time, each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from nnunetv2_federated.experiment.follow import rounds_passed_on
from nnunetv2_federated.experiment.train_process import (
    LOG_FILE,
    reason_of_failure,
    start_training,
)
from nnunetv2_federated.federation.errors import FederationError
from nnunetv2_federated.federation.run import Run

_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
    """A training for a process."""

    run: Run
    flags: tuple[str, ...]
    """Flags of :mod:`.train_run`."""
    begins: Callable[[], None]
    """Called when the process is started."""
    ended: Callable[[], None]
    """Called when it has trained and validated."""
    round_done: Callable[[str], None]
    """Called with a line about each round."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that the process has beside those of this one."""

    @property
    def name(self) -> str:
        """Name of the training, and of its folder."""
        return f"{self.run.configuration}__fold_{self.run.fold}"

    def excuses(self, reason: str) -> bool:
        """Return whether others go on although this training failed for a reason."""
        del reason
        return False


@dataclass(eq=False)
class _Running:
    job: Job
    slot: int
    place: Path
    process: subprocess.Popen[bytes]
    followed: contextlib.ExitStack

    def kill(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.followed.close()

    def close(self) -> str | None:
        """Tell that the process has ended; return why it failed, if it did."""
        self.followed.close()
        if self.process.returncode == 0:
            self.job.ended()
            return None
        reason = reason_of_failure(self.place, self.process.returncode)
        if self.job.excuses(reason):
            return None
        return f"{self.job.name}: {reason}; its log is {self.place / LOG_FILE}"


def train_side_by_side(
    jobs: Sequence[Job], at_a_time: int, folder: Path, *, again: str = "with --c "
) -> None:
    """Train, in the order of the jobs; after one that fails no other is begun.

    Parameters
    ----------
    jobs
        What to train.
    at_a_time
        Number of processes at most. On several GPUs they take them in turn; on a CPU its cores are
        shared out, unless ``OMP_NUM_THREADS`` says otherwise.
    folder
        Folder for the processes' logs.
    again
        What the same command needs to go on after a failure, for the message.

    Raises
    ------
    FederationError
        If a training fails, once those that run have ended; names the first.
    """
    waiting, running = list(jobs), list[_Running]()
    failures = list[str]()
    try:
        while running or (waiting and not failures):
            for slot in [] if failures else _free_slots(running, at_a_time)[: len(waiting)]:
                running.append(_start(waiting.pop(0), slot, at_a_time, folder))
            time.sleep(_LOOK_SECONDS)
            failures += _take_out_ended(running)
    finally:
        for one in running:
            one.kill()
    if failures:
        raise FederationError(f"{failures[0]}. The same command {again}goes on.")


def _free_slots(running: Sequence[_Running], at_a_time: int) -> list[int]:
    return sorted(set(range(at_a_time)) - {one.slot for one in running})


def _take_out_ended(running: list[_Running]) -> list[str]:
    """Take out what has ended; return why those failed that did."""
    ended = [one for one in running if one.process.poll() is not None]
    for one in ended:
        running.remove(one)
    return [reason for one in ended if (reason := one.close()) is not None]


def _start(job: Job, slot: int, slots: int, folder: Path) -> _Running:
    place = folder / job.name
    job.begins()
    shared = share_of_machine(job.run.device, slot, slots)
    environment = {**os.environ, **shared, **job.environment}
    followed = contextlib.ExitStack()
    followed.enter_context(rounds_passed_on(place / LOG_FILE, job.round_done))
    process = start_training(job.run, place, environment, *job.flags)
    return _Running(job, slot, place, process, followed)


def share_of_machine(device: str, slot: int, slots: int) -> dict[str, str]:
    """Return the environment that gives a process its GPU, or its share of the cores.

    Parameters
    ----------
    device
        Device of the training.
    slot
        Number of the process among those at work, from 0.
    slots
        Processes at a time.
    """
    if device == "cuda":
        count = torch.cuda.device_count()
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = named.split(",") if named else [str(number) for number in range(count)]
        return {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {}
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // slots))}
