"""A site that several processes train, each on a GPU: nnU-Net's DDP, a round at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.messages import (
    FullValidation,
    PersonalReport,
    SiteDescription,
    TrainReport,
    TrainTask,
    Validation,
)
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.run import Run, SiteCases
from nnunetv2_federated.nnunet.environment import quiet
from nnunetv2_federated.nnunet.training.personal_model import PersonalTraining
from nnunetv2_federated.nnunet.training.rank_group import RankGroup
from nnunetv2_federated.nnunet.training.rank_process import Facts


class RankedSite:
    """A site whose rounds several processes train, as :class:`.Site` is one whose rounds one does.

    If anything is raised, the processes have ended, and the site can be built anew from its state
    on disk.

    Parameters
    ----------
    run
        Run of the federation, with ``num_gpus`` above 1.
    index
        Position of the site in ``run.sites``.
    folder
        Folder of the run; the site writes into ``sites/<name>`` in it.
    observer
        Receives the site's progress; what it raises ends the work.
    max_gpu_gb
        Memory that is taken of each GPU at most; ``None`` for all.
    """

    def __init__(
        self,
        run: Run,
        index: int,
        folder: Path,
        observer: Observer,
        max_gpu_gb: float | None = None,
    ) -> None:
        self.run = run
        self.cases: SiteCases = run.sites[index]
        self.folder = folder / "sites" / self.cases.name
        self.observer = observer
        self._personal = PersonalTraining.of(run, index, self.folder)
        self.group = RankGroup(run, index, folder, observer, max_gpu_gb)
        self.interrupted = False
        """Whether work has begun and did not end: the processes are in no state that is on disk."""
        facts: Facts = self.group.answer()
        self.lrs = facts.lrs
        self.val_iterations = facts.val_iterations

    def describe(self) -> SiteDescription:
        """Return what :meth:`.Site.describe` does."""
        description: SiteDescription = self._done("describe")
        return description

    def train(self, task: TrainTask, weights: Vector) -> tuple[Vector, TrainReport]:
        """Do what :meth:`.Site.train` does, with all ranks.

        Raises
        ------
        SiteError
            If the training loss is not finite, or a process has ended.
        CheckpointError
            If the state before the round is gone or cannot be read.
        """
        trained: tuple[Vector, TrainReport] = self._done("train", task, weights)
        return trained

    def evaluate(self, iterations: int, weights: Vector) -> Validation:
        """Do what :meth:`.Site.evaluate` does, with all ranks."""
        validation: Validation = self._done("evaluate", iterations, weights)
        return validation

    def validate_fully(self, weights: Vector) -> FullValidation:
        """Do what :meth:`.Site.validate_fully` does, on the first GPU alone."""
        validation: FullValidation = self._done("validate_fully", weights)
        self.interrupted = True  # the trainer is not what the next round would expect
        return validation

    def personalise(self, weights: Vector) -> PersonalReport:
        """Do what :meth:`.Site.personalise` does, in this process, on the first GPU."""
        with quiet():
            told = self._personal.told(weights)
            if told is None:
                self.interrupted = True
                self.group.kill()  # it has the GPUs
                trainer = self._personal.build()
                try:
                    told = self._personal.make(trainer, weights, self.observer)
                finally:
                    trainer.close()
        return told

    @property
    def personal_folder(self) -> Path:
        """nnU-Net's result folder of the fold of the personal model."""
        return self._personal.folder

    def close(self) -> None:
        """End the processes. Nothing is saved: the state is on disk already."""
        if self.interrupted:
            self.group.kill()
        else:
            self.group.close()

    def _done(self, name: str, *arguments: object) -> Any:  # noqa: ANN401  # of any method
        self.interrupted = True
        answer = self.group.ask(name, *arguments)
        self.interrupted = False
        return answer
