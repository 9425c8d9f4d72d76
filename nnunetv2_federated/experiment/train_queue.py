"""Train the trainings of a queue, and validate each."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flwr.serverapp import Grid

from nnunetv2_federated.experiment.queue import (
    Training,
    coming_predictions,
    previous_stage,
    queue_folder,
)
from nnunetv2_federated.experiment.side_by_side import Job, train_side_by_side
from nnunetv2_federated.experiment.train import TrainedModel, evaluate, train, trained_model
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.files import only_one
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.progress import Progress
from nnunetv2_federated.flower.deployment.server.serve import ServerSettings, federation_grid
from nnunetv2_federated.flower.launch import check


@dataclass(frozen=True)
class HowToTrain:
    """What is the same for all trainings of a queue."""

    observer: Observer = field(default_factory=Observer)
    """Receives notes and progress."""
    backend: str = "in-process"
    server: ServerSettings | None = None
    """Address and credentials of the server, for runs with ``remote_sites``."""
    best: bool = False
    npz: bool = False
    parallel: int = 1
    """Trainings at a time."""


def train_queue(trainings: Sequence[Training], how: HowToTrain) -> list[TrainedModel]:
    """Train all that are not finished; the first that fails ends the queue.

    Parameters
    ----------
    trainings
        Of :func:`.resolve_queue`.
    how
        How to train them.

    Returns
    -------
    list of TrainedModel
        In the order of ``trainings``.

    Raises
    ------
    SettingsError
        If a training is not possible, before the first begins; earlier runs are as they were.
    FederationError
        As :func:`.train` does; the trainings before are finished, and ``c`` continues.
    """
    if how.parallel > 1 and (how.server is not None or how.backend != "in-process"):
        other = "--server" if how.server is not None else f"--backend {how.backend}"
        raise SettingsError(f"--parallel {how.parallel} {other}: keep one of the two.")
    _check_all(trainings, how)
    folder = queue_folder(trainings[0].run)
    busy = f"another command trains a queue in {folder}; wait until it ends, or stop it."
    lock = folder.with_name(f".{folder.name}.lock")
    with only_one(lock, busy, remove=True, inherited=how.parallel > 1):
        if how.parallel > 1:
            _train_some_at_a_time(trainings, how, folder)
        else:
            _train_in_turn(trainings, how, folder)
        shutil.rmtree(folder, ignore_errors=True)
    return [trained_model(training.run) for training in trainings]


def evaluate_queue(trainings: Sequence[Training], how: HowToTrain) -> list[TrainedModel]:
    """Validate all trainings again.

    Raises
    ------
    SettingsError
        If one has no final checkpoint, or its cases are at sites on other machines.
    """
    return [evaluate(training.run, best=how.best, npz=how.npz) for training in trainings]


def _check_all(trainings: Sequence[Training], how: HowToTrain) -> None:
    """Find now what would end the queue hours later; notes are for when a training begins."""
    for number, training in enumerate(trainings):
        if training.begun:
            continue
        before = previous_stage(training.run)
        earlier = [t.run for t in trainings[:number] if t.run.configuration == before]
        try:
            check(training.run, how.backend, coming_predictions(earlier))
        except SettingsError as error:
            raise SettingsError(f"{_name(training)}: {error}") from error


def _name(training: Training) -> str:
    return f"{training.run.configuration} fold {training.run.fold}"


class _Course:
    """Says which training of how many begins and ends, and how long those that are left take."""

    def __init__(self, trainings: Sequence[Training], observer: Observer) -> None:
        self._trainings = trainings
        self._observer = observer
        self._progress = Progress(total=len(trainings))
        self._finished = sum(training.finished for training in trainings)
        for training in trainings:
            if training.finished:
                self.say(training, "done before")

    def say(self, training: Training, text: str) -> None:
        number = self._trainings.index(training) + 1
        self._observer.say(f"[{number}/{len(self._trainings)}] {_name(training)}: {text}")

    def ended(self, training: Training) -> None:
        self._finished += 1
        left = self._progress.finished(self._finished)
        headline = trained_model(training.run).headline
        result = "trained" if headline is None else f"{headline.metric} {headline.value:.4f}"
        self.say(training, f"{result}; about {left} left" if left else result)


def _train_in_turn(trainings: Sequence[Training], how: HowToTrain, folder: Path) -> None:
    course = _Course(trainings, how.observer)
    to_do = [training for training in trainings if not training.finished]
    if not to_do:
        return
    with _grid(to_do[0], how, folder) as grid:
        for training in to_do:
            course.say(training, _beginning(training))
            train(
                training.run,
                resume=training.begun,
                observer=how.observer,
                backend=how.backend,
                server=how.server,
                grid=grid,
                best=how.best,
                npz=how.npz,
            )
            course.ended(training)


@contextlib.contextmanager
def _grid(training: Training, how: HowToTrain, folder: Path) -> Iterator[Grid | None]:
    """Start one SuperLink for the whole queue, so that sites stay connected in between."""
    if how.server is None:
        yield None
        return
    link = folder / "superlink"
    with federation_grid(training.run, link, how.server, how.observer) as grid:
        yield grid


def _train_some_at_a_time(trainings: Sequence[Training], how: HowToTrain, folder: Path) -> None:
    """Train in processes; the next stage of a cascade waits for all that come before it."""
    course = _Course(trainings, how.observer)
    to_do = [training for training in trainings if not training.finished]
    configurations = {training.run.configuration for training in trainings}
    stages: list[list[Training]] = [[]]
    for number, training in enumerate(to_do):
        new = number and training.run.configuration != to_do[number - 1].run.configuration
        if new and previous_stage(training.run) in configurations:
            stages.append([])
        stages[-1].append(training)
    for stage in stages:
        jobs = [_job(training, how, course) for training in stage]
        train_side_by_side(jobs, how.parallel, folder)


def _job(training: Training, how: HowToTrain, course: _Course) -> Job:
    wanted = {"--anew": not training.begun, "--best": how.best, "--npz": how.npz}
    return Job(
        training.run,
        tuple(flag for flag, is_wanted in wanted.items() if is_wanted),
        begins=lambda: course.say(training, _beginning(training)),
        ended=lambda: course.ended(training),
        round_done=lambda line: course.say(training, line),
    )


def _beginning(training: Training) -> str:
    return "continues" if training.begun else "begins"
