"""One site of a run: its trainer, which trains and validates a round at a time."""

from __future__ import annotations

import math
import shutil
import time
from importlib.metadata import version
from pathlib import Path

import torch

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.errors import DIVERGED, SiteError
from nnunetv2_federated.federation.messages import (
    ROUGH_SECONDS,
    VALIDATION_EPOCH,
    FullValidation,
    PersonalReport,
    PrivacyTerms,
    SiteDescription,
    TrainReport,
    TrainTask,
    Validation,
)
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.run import Run, SiteCases
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.environment import quiet
from nnunetv2_federated.nnunet.privacy.requirements import check_trainer
from nnunetv2_federated.nnunet.privacy.site_privacy import Budget, SitePrivacy
from nnunetv2_federated.nnunet.summary import summarise_site
from nnunetv2_federated.nnunet.training.build_trainer import build_trainer, move_output
from nnunetv2_federated.nnunet.training.personal_model import PersonalTraining
from nnunetv2_federated.nnunet.training.private_trainer import (
    PrivateRounds,
    trainer_of_sites,
)
from nnunetv2_federated.nnunet.training.randomness import (
    capture_randomness,
    restore_randomness,
    seed_everything,
)
from nnunetv2_federated.nnunet.training.ranks import (
    gather,
    in_one_process,
    seed_of_rank,
    this_rank,
)
from nnunetv2_federated.nnunet.training.site_state import rounds_on_disk
from nnunetv2_federated.nnunet.training.site_trainer import prepare_for_site, watched
from nnunetv2_federated.nnunet.training.trainer_state import TrainerState
from nnunetv2_federated.nnunet.training.weights import load_vector, network_hash, to_vector


def describe_device(device: torch.device) -> str:
    """Return the name of the device, with the memory of a GPU."""
    if device.type != "cuda":
        return device.type
    gigabytes = torch.cuda.get_device_properties(device).total_memory / 2**30
    return f"{torch.cuda.get_device_name(device)}, {gigabytes:.0f} GB"


def tells_of_validation(settings: FederationSettings, cases: SiteCases) -> bool:
    """Whether a site has validation cases, and may tell of them.

    Under differential privacy cases that it trains on do not count: what leaves of them is noisy.
    """
    own = set(cases.validation_cases)
    if settings.private:
        own -= set(cases.training_cases)
    return bool(own) and not settings.withholds


class Site:
    """One site's trainer, from the first round to the last.

    Where several processes train a site (:mod:`.ranked_site`), each has one of these, which does
    the same as the others; rank 0 saves the state, writes the files and answers.

    Parameters
    ----------
    run
        Run of the federation.
    index
        Position of the site in ``run.sites``.
    folder
        Folder of the run; the site writes into ``sites/<name>`` in it.
    observer
        Receives the site's progress.
    budget
        What the hospital allows itself of differential privacy's epsilon.
    output
        Folder for what nnU-Net's trainer writes itself; ``None`` for the site's folder.
    """

    def __init__(
        self,
        run: Run,
        index: int,
        folder: Path,
        observer: Observer,
        budget: Budget = Budget(),  # noqa: B008  # frozen
        *,
        output: Path | None = None,
    ) -> None:
        self.run = run
        self.cases: SiteCases = run.sites[index]
        self.folder = folder / "sites" / self.cases.name
        self.observer = observer
        self._dataset = load_dataset(self.cases.dataset, run.plans_name)
        with quiet():
            # site 0 draws what a stock training with this seed draws
            seed_everything(seed_of_rank(run.settings.seed + index, this_rank()))
            self.trainer = build_trainer(run, self._dataset, trainer_of_sites(run))
            self._stage_folder = self.trainer.output_folder_base
            gather(None)  # all have made nnU-Net's result folder, which goes away if it is empty
            move_output(self.trainer, output or self.folder)
            prepare_for_site(self.trainer, self.cases, observer)
            self._privacy = self._protect(budget)
        self._personal = PersonalTraining.of(run, index, self.folder)
        self.interrupted = False
        """Whether a round began and did not end: the trainer is in no state that is on disk."""
        own = run.settings.batchnorm == "local"
        self.state = TrainerState(self.trainer, self.cases.name, self.folder, local_batchnorm=own)
        """Where its trainer stands."""

    @property
    def lrs(self) -> tuple[float, ...]:
        """Learning rate of each round."""
        return self.trainer.schedule.lrs

    @property
    def val_iterations(self) -> int | None:
        """Validation iterations of an epoch; ``None`` if it goes through all cases."""
        iterations: int | None = self.trainer.num_val_iterations_per_epoch
        return iterations

    def describe(self) -> SiteDescription:
        """Return what the server must know of the site before the first round."""
        return SiteDescription(
            site=self.cases.name,
            training_cases=len(self.cases.training_cases),
            validation_cases=len(self.cases.validation_cases),
            network_hash=network_hash(self.trainer.network),
            plans_hash=self._dataset.plans_hash,
            declared=self._dataset.declared,
            versions={name: version(name) for name in ("nnunetv2", "torch", "flwr")},
            device=describe_device(self.trainer.device),
            free_gb=round(shutil.disk_usage(self.folder).free / 2**30, 1),
            privacy=self._promise(),
        )

    def _protect(self, budget: Budget) -> SitePrivacy | None:
        """Let the trainer train with differential privacy, if the run has it."""
        trainer = self.trainer
        if not isinstance(trainer, PrivateRounds):
            return None
        iterations = trainer.num_iterations_per_epoch
        privacy = SitePrivacy(self.run, self.cases, self._dataset, iterations, budget)
        check_trainer(trainer, privacy.training)
        trainer.privacy = privacy.training
        trainer.num_iterations_per_epoch = privacy.iterations_per_epoch
        return privacy

    def _promise(self) -> PrivacyTerms | None:
        if self._privacy is None:
            return None
        return self._privacy.terms(max(rounds_on_disk(self.folder), default=-1) + 1)

    def train(self, task: TrainTask, weights: Vector) -> tuple[Vector, TrainReport]:
        """Train one round, starting from the global weights, and save the site's state.

        Returns
        -------
        tuple
            Trained weights, and what the site reports of the round.

        Raises
        ------
        SiteError
            If the training loss is not finite.
        CheckpointError
            If the state before the round is gone or cannot be read.
        """
        started = time.perf_counter()
        settings = self.run.settings
        self.interrupted = True
        with quiet():
            self.state.return_to(task.server_round)
            received_iterations = self._iterations(task.validate_received)
            self.observer.site_started(
                self.cases.name,
                received_iterations + task.local_epochs * self._iterations_per_epoch(),
            )
            self.state.receive(weights)
            received = self._validate_received(received_iterations)
            if self._privacy is not None:
                self._privacy.charge(task.server_round)
            if settings.local_momentum == "reset":
                self.trainer.optimizer.state.clear()
            seconds_left = (
                None if task.seconds is None else task.seconds - (time.perf_counter() - started)
            )
            loss = self.trainer.run_round(
                task.lr, task.local_epochs, task.proximal_mu, seconds_left
            )
            self._check_loss(loss)
            trained = to_vector(self.trainer.network)
            self.state.keep(task.server_round)
        self.interrupted = False
        seconds = time.perf_counter() - started
        report = TrainReport(
            site=self.cases.name,
            training_cases=len(self.cases.training_cases),
            train_loss=None if settings.private else loss,
            validation=self._without_borrowed(self.trainer.last_validation),
            received=received,
            seconds=round(seconds / ROUGH_SECONDS) * ROUGH_SECONDS if settings.private else seconds,
            completed=self.trainer.completed,
        )
        return trained, report

    def evaluate(self, iterations: int, weights: Vector) -> Validation:
        """Validate global weights on patches of this site's cases, without training."""
        with quiet():
            self.state.start()
            iterations = self._iterations(iterations)
            self.observer.site_started(self.cases.name, iterations)
            self.state.receive(weights)
            return self._without_borrowed(self.trainer.validate_iterations(iterations))

    def validate_fully(self, weights: Vector) -> FullValidation:
        """Run nnU-Net's full validation of global weights on this site's cases of the fold."""
        count = len(self.cases.validation_cases)
        nothing = FullValidation(self.cases.name, 0, {}, {})
        if count == 0:
            return nothing
        self.interrupted = True  # the trainer is not what the next round would expect
        with quiet():
            self.state.start()
            if this_rank() > 0:  # rank 0 predicts all cases, as a training on one GPU does
                return nothing
            with in_one_process(self.trainer):
                self._predict_all(weights)
        return summarise_site(self.cases.name, count, self.folder)

    def _predict_all(self, weights: Vector) -> None:
        """Let nnU-Net predict all validation cases with global weights."""
        load_vector(self.trainer.network, weights)
        # the next stage of a cascade looks for predictions in the stage's own folder
        folder_of_site = self.trainer.output_folder_base
        self.trainer.output_folder_base = self._stage_folder
        try:
            with watched(self.trainer):
                self.trainer.perform_actual_validation(self.run.npz)
        finally:
            self.trainer.output_folder_base = folder_of_site

    def personalise(self, weights: Vector) -> PersonalReport:
        """Make the site's personal model of the final global weights, once; it stays here.

        Returns
        -------
        PersonalReport
            What the server may know of it.

        Raises
        ------
        SiteError
            If the trainer ends its epoch too early.
        """
        with quiet():
            told = self._personal.told(weights)
            if told is None:
                self.interrupted = True  # another trainer takes the place of the rounds' own
                self.close()
                self.trainer.network = self.trainer.optimizer = None  # they fill the GPU
                self.trainer = self._personal.build()
                told = self._personal.make(self.trainer, weights, self.observer)
        return told

    @property
    def personal_folder(self) -> Path:
        """nnU-Net's result folder of the fold of the personal model."""
        return self._personal.folder

    def close(self) -> None:
        """Stop the augmentation workers. Nothing is saved: the state is on disk already."""
        with quiet():
            self.trainer.close()

    def _check_loss(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise SiteError(
                f"site {self.cases.name}: its training loss is {loss}: {DIVERGED}; "
                "a smaller --initial-lr may help."
            )

    def _iterations(self, requested: int) -> int:
        per_epoch: int = self.trainer.num_val_iterations_per_epoch
        return per_epoch if requested == VALIDATION_EPOCH else requested

    def _iterations_per_epoch(self) -> int:
        trainer = self.trainer
        total: int = trainer.num_iterations_per_epoch + trainer.num_val_iterations_per_epoch
        return total

    def _without_borrowed(self, validation: Validation) -> Validation:
        """Return an empty validation for a site that has no cases for it, or withholds it."""
        if tells_of_validation(self.run.settings, self.cases):
            return validation
        nothing = [0.0] * len(validation.tp)
        return Validation(0, 0.0, nothing, nothing, nothing)

    def _validate_received(self, iterations: int) -> Validation | None:
        """Validate the received weights, without a change to the training's random numbers."""
        if iterations == 0:
            return None
        before = capture_randomness()
        try:
            return self._without_borrowed(self.trainer.validate_iterations(iterations))
        finally:
            restore_randomness(before)
