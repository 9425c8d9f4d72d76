"""A site at work: a living trainer, and its state on disk after every round."""

from __future__ import annotations

import math
import shutil
import time
from collections import OrderedDict
from importlib.metadata import version
from pathlib import Path

import torch
from nnunetv2.training.logging.nnunet_logger import MetaLogger

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.errors import CheckpointError, SiteError
from nnunetv2_federated.federation.messages import (
    VALIDATION_EPOCH,
    FullValidation,
    SiteDescription,
    TrainReport,
    TrainTask,
    Validation,
)
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.run import Run, SiteCases
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.environment import quiet
from nnunetv2_federated.nnunet.summary import summarise_site
from nnunetv2_federated.nnunet.training import local_state
from nnunetv2_federated.nnunet.training.build_trainer import build_trainer, move_output
from nnunetv2_federated.nnunet.training.weights import (
    batchnorm_tensors,
    load_vector,
    local_buffers,
    network_hash,
    to_vector,
)

BEFORE_FIRST_ROUND = -1


class _NoPlots(MetaLogger):
    """A site's logger: nnU-Net's plot costs a second an epoch, and ``federation.png`` has it."""

    def __init__(self, logger: MetaLogger) -> None:
        self.__dict__.update(vars(logger))

    def plot_progress_png(self, output_folder: str) -> None:
        """Draw nothing."""


DEFAULT_RESIDENT = 4
"""Trainers kept alive unless ``--resident-trainers`` says otherwise."""


def describe_device(device: torch.device) -> str:
    """Name the device, and the memory of a GPU."""
    if device.type != "cuda":
        return device.type
    gigabytes = torch.cuda.get_device_properties(device).total_memory / 2**30
    return f"{torch.cuda.get_device_name(device)}, {gigabytes:.0f} GB"


class Site:
    """One site's trainer, from the first round to the last."""

    def __init__(self, run: Run, index: int, folder: Path, observer: Observer) -> None:
        self.run = run
        self.settings: SiteCases = run.sites[index]
        self.folder = folder / "sites" / self.settings.name
        self._observer = observer
        self._dataset = load_dataset(self.settings.dataset, run.plans_name)
        with quiet():
            # site 0 draws what a stock training with this seed draws
            local_state.seed_everything(run.settings.seed + index)
            self.trainer = build_trainer(run, self._dataset)
            self._stage_folder = self.trainer.output_folder_base
            move_output(self.trainer, self.folder)
            self.trainer.disable_checkpointing = True
            training = list(self.settings.training_cases)
            # nnU-Net's loop needs a case to validate; what comes of it is not reported
            self.trainer.site_cases = (training, list(self.settings.validation_cases) or training)
            self.trainer.on_iteration = observer.iteration_done
            self.trainer.logger = _NoPlots(self.trainer.logger)
            self.trainer.initialize()
        self._after_round = BEFORE_FIRST_ROUND
        self._started = False
        self.interrupted = False
        """A round began and did not end: trainer and log are somewhere in between."""
        self._randomness = local_state.capture_randomness()

    def describe(self) -> SiteDescription:
        """Answer what the server must know before the first round."""
        return SiteDescription(
            site=self.settings.name,
            training_cases=len(self.settings.training_cases),
            validation_cases=len(self.settings.validation_cases),
            network_hash=network_hash(self.trainer.network),
            plans_hash=self._dataset.plans_hash,
            declared=self._dataset.declared,
            versions={name: version(name) for name in ("nnunetv2", "torch", "flwr")},
            device=describe_device(self.trainer.device),
            free_gb=round(shutil.disk_usage(self.folder).free / 2**30, 1),
        )

    def train(self, task: TrainTask, weights: Vector) -> tuple[Vector, TrainReport]:
        """Train one round, starting from the global weights, and save the local state."""
        started = time.perf_counter()
        settings = self.run.settings
        self.interrupted = True
        with quiet():
            self._be_as_before(task.server_round)
            before = self._iterations(task.validate_received)
            self._observer.site_started(
                self.settings.name, before + task.local_epochs * self._iterations_per_epoch()
            )
            self._receive(weights)
            received = self._validate(before)
            if settings.local_momentum == "reset":
                self.trainer.optimizer.state.clear()
            left = None if task.seconds is None else task.seconds - (time.perf_counter() - started)
            loss = self.trainer.run_round(task.lr, task.local_epochs, task.proximal_mu, left)
            self._check_loss(loss)
            trained = to_vector(self.trainer.network)
            self._randomness = local_state.capture_randomness()
            self._after_round = task.server_round
            self._save()
        self.interrupted = False
        report = TrainReport(
            site=self.settings.name,
            training_cases=len(self.settings.training_cases),
            train_loss=loss,
            validation=self._reported(self.trainer.last_validation),
            received=received,
            seconds=time.perf_counter() - started,
            completed=self.trainer.completed,
        )
        return trained, report

    def evaluate(self, iterations: int, weights: Vector) -> Validation:
        """Validate global weights without training."""
        with quiet():
            self._start()
            iterations = self._iterations(iterations)
            self._observer.site_started(self.settings.name, iterations)
            self._receive(weights)
            return self.trainer.validate_iterations(iterations)

    def validate_fully(self, weights: Vector) -> FullValidation:
        """Run nnU-Net's full validation of global weights on this site's cases of the fold."""
        count = len(self.settings.validation_cases)
        if count == 0:
            return FullValidation(self.settings.name, 0, {}, {})
        self.interrupted = True  # the trainer is not what the next round would expect
        with quiet():
            self._start()
            network = self.trainer.network
            load_vector(network, weights)
            # nnU-Net has no hook here; whoever watches must be able to end this, too
            watched = network.register_forward_pre_hook(lambda *_: self._observer.iteration_done())
            own, self.trainer.output_folder_base = (
                self.trainer.output_folder_base,
                self._stage_folder,  # for the next stage of a cascade, which looks there
            )
            try:
                self.trainer.perform_actual_validation()
            finally:
                watched.remove()
                self.trainer.output_folder_base = own
        return summarise_site(self.settings.name, count, self.folder)

    def close(self) -> None:
        """Stop the augmentation workers; the state is on disk already."""
        with quiet():
            self.trainer.close()

    def _check_loss(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise SiteError(
                f"site {self.settings.name}: its training loss is {loss}: the training diverged; "
                "a smaller --initial-lr may help."
            )

    def _iterations(self, asked: int) -> int:
        own: int = self.trainer.num_val_iterations_per_epoch
        return own if asked == VALIDATION_EPOCH else asked

    def _iterations_per_epoch(self) -> int:
        trainer = self.trainer
        total: int = trainer.num_iterations_per_epoch + trainer.num_val_iterations_per_epoch
        return total

    def _receive(self, weights: Vector) -> None:
        """Take the global weights; what is local stays as it is once the site has trained."""
        first = self._after_round == BEFORE_FIRST_ROUND
        local = {} if first else self._local_tensors()
        load_vector(self.trainer.network, weights, keep=local.keys())

    def _local_tensors(self) -> dict[str, torch.Tensor]:
        """Return what the server never overwrites: counters, and BatchNorm if that is local."""
        network = self.trainer.network
        normalisation = batchnorm_tensors(network) if self.run.settings.batchnorm == "local" else {}
        return local_buffers(network) | normalisation

    def _reported(self, validation: Validation) -> Validation:
        if self.settings.validation_cases:
            return validation
        nothing = [0.0] * len(validation.tp)
        return Validation(0, 0.0, nothing, nothing, nothing)

    def _validate(self, iterations: int) -> Validation | None:
        """Validate the received weights; the training's random numbers are not touched by it."""
        if iterations == 0:
            return None
        before = local_state.capture_randomness()
        try:
            return self.trainer.validate_iterations(iterations)
        finally:
            local_state.restore_randomness(before)

    def _start(self) -> None:
        if not self._started:
            # other sites of this process have drawn random numbers since this one was built
            local_state.restore_randomness(self._randomness)
            self.trainer.on_train_start()
            self._randomness = local_state.capture_randomness()
            self._started = True

    def _be_as_before(self, server_round: int) -> None:
        """Become the site as it was before a round: as it is, or as the disk remembers it."""
        self._start()
        earlier = [r for r in local_state.rounds_on_disk(self.folder) if r < server_round]
        if not earlier:
            if self._after_round != BEFORE_FIRST_ROUND:
                raise CheckpointError(f"site {self.settings.name} lost its state in {self.folder}")
            self._save()  # its first round may be asked for again, too
        elif max(earlier) != self._after_round:
            self._load(max(earlier))
        local_state.restore_randomness(self._randomness)

    def _save(self) -> None:
        trainer = self.trainer
        state = {
            "optimizer": trainer.optimizer.state_dict(),
            "scaler": trainer.grad_scaler.state_dict() if trainer.grad_scaler else None,
            "buffers": self._local_tensors(),
            "epoch": trainer.current_epoch,
            "best_ema": None if trainer._best_ema is None else float(trainer._best_ema),
            "logging": local_state.plain(trainer.logger.get_checkpoint()),
            "randomness": self._randomness,
        }
        local_state.save(local_state.state_path(self.folder, self._after_round), state)
        local_state.drop_superseded(self.folder)

    def _load(self, server_round: int) -> None:
        state = local_state.load(local_state.state_path(self.folder, server_round))
        trainer = self.trainer
        trainer.optimizer.load_state_dict(state["optimizer"])
        if trainer.grad_scaler is not None and state["scaler"] is not None:
            trainer.grad_scaler.load_state_dict(state["scaler"])
        with torch.no_grad():
            for name, buffer in self._local_tensors().items():
                buffer.copy_(state["buffers"][name])
        trainer.current_epoch = state["epoch"]
        trainer._best_ema = state["best_ema"]  # nnU-Net's own attribute
        trainer.logger.load_checkpoint(state["logging"])
        self._randomness = state["randomness"]
        self._after_round = server_round


class SitePool:
    """Keeps at most ``capacity`` trainers alive; the others are parked on disk."""

    def __init__(self, observer: Observer | None = None) -> None:
        self._observer = observer or Observer()
        self._alive: OrderedDict[tuple[Path, int], Site] = OrderedDict()

    def get(self, run: Run, index: int, folder: Path) -> Site:
        """Return a living site, building it, and parking another, if need be."""
        key = (folder, index)
        if key in self._alive:
            self._alive.move_to_end(key)
            if not self._alive[key].interrupted:
                return self._alive[key]
            self._alive.pop(key).close()  # to be built anew, as the disk remembers it
        capacity = run.settings.resident_trainers or DEFAULT_RESIDENT
        while len(self._alive) >= capacity:
            _, parked = self._alive.popitem(last=False)
            parked.close()
            del parked
        self._alive[key] = Site(run, index, folder, self._observer)
        return self._alive[key]

    def close(self) -> None:
        """Close every living site."""
        while self._alive:
            self._alive.popitem()[1].close()
