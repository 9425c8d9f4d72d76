"""The global model as a stock nnU-Net result folder."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunetv2_federated.federation.aggregation import Vector, is_finite
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.history import RoundRecord, round_numbers
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.environment import quiet
from nnunetv2_federated.nnunet.summary import read_headline
from nnunetv2_federated.nnunet.training.build_trainer import build_trainer, initialize
from nnunetv2_federated.nnunet.training.checkpoint_file import (
    load_pretrained,
)
from nnunetv2_federated.nnunet.training.metadata import write_json, write_metadata
from nnunetv2_federated.nnunet.training.packages import defining_packages
from nnunetv2_federated.nnunet.training.randomness import seed_everything
from nnunetv2_federated.nnunet.training.result_folder import STATE_FILE, drop_previous
from nnunetv2_federated.nnunet.training.server_state import (
    ServerState,
    load_server_state,
    save_server_state,
)
from nnunetv2_federated.nnunet.training.tracking import close_trackers, open_trackers, trackers_of
from nnunetv2_federated.nnunet.training.trainer import FederatedRounds
from nnunetv2_federated.nnunet.training.weights import (
    batchnorm_tensors,
    load_vector,
    network_hash,
    num_values,
    to_vector,
)

_TRAINER_SETTINGS = (
    "initial_lr",
    "weight_decay",
    "oversample_foreground_percent",
    "probabilistic_oversampling",
    "num_iterations_per_epoch",
    "num_val_iterations_per_epoch",
    "num_epochs",
    "enable_deep_supervision",
)
"""Attributes of a trainer that nnU-Net sends to its W&B logger."""
_USUAL_EPOCHS = 1000
"""Number of epochs of ``nnUNetTrainer``; the user knows that ``--rounds`` replaces it."""


class GlobalModel:
    """The server's trainer: it never trains, it holds the global weights and writes the results.

    Parameters
    ----------
    run
        Run of the federation.
    trainer
        Trainer that nnU-Net's own command has built; ``None`` to build the run's.
    """

    def __init__(self, run: Run, trainer: FederatedRounds | None = None) -> None:
        dataset = load_dataset(run.dataset, run.plans_name)
        with quiet():
            seed_everything(run.settings.seed)
            self.trainer = trainer or build_trainer(run, dataset)
            self.trainer.num_epochs = run.settings.rounds
            self.trainer.disable_checkpointing = run.disable_checkpointing
            if not self.trainer.was_initialized:
                with _cases_elsewhere(self.trainer, elsewhere=bool(run.remote_sites)):
                    initialize(self.trainer, run)
            else:  # nnU-Net's own command has initialised it, with other settings
                self.trainer.take_schedule()
            if run.settings.batchnorm == "local" and not batchnorm_tensors(self.trainer.network):
                raise SettingsError(
                    f"--batchnorm local: the network of {run.configuration} has no BatchNorm; "
                    "leave the flag out."
                )
            # called for its side effect: it sets inference_allowed_mirroring_axes, which the
            # checkpoint stores
            self.trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if run.settings.withholds:  # no model is the best of those that nobody validated
            self.trainer._best_ema = math.inf
        self.folder = Path(self.trainer.output_folder)
        self.initial_lr: float = self.trainer.initial_lr
        self.schedule = self.trainer.schedule
        self.notes = _notes(run, self.trainer)
        self.network_hash = network_hash(self.trainer.network)
        self.val_iterations: int | None = self.trainer.num_val_iterations_per_epoch
        self.plans_hash = dataset.plans_hash
        self.declared = dataset.declared
        self.packages = defining_packages(dataset.plans, run.trainer)
        self.validated_classes = self.trainer.validated_classes
        self.num_values = num_values(self.trainer.network)
        self._fingerprint = dataset.folder / "dataset_fingerprint.json"

    def load_pretrained(self, filename: str) -> None:
        """Load the weights of an nnU-Net checkpoint, like ``nnUNetv2_train -pretrained_weights``.

        Raises
        ------
        SettingsError
            If the file cannot be read, is no checkpoint, or has weights of another network.
        """
        with quiet():
            load_pretrained(self.trainer.network, filename)
        if not is_finite(self.vector):
            raise SettingsError(
                f"-pretrained_weights {filename}: has weights that are not finite: its training "
                "diverged; give another checkpoint."
            )

    @property
    def vector(self) -> Vector:
        """Present weights of the network."""
        return to_vector(self.trainer.network)

    def write_metadata(self) -> None:
        """Write the files that inference needs beside the checkpoints."""
        write_metadata(self.trainer, Path(self.trainer.output_folder_base), self._fingerprint)

    def open_trackers(self, settings: Mapping[str, Any]) -> list[str]:
        """Start or continue the runs of the trackers that are switched on.

        :meth:`close` ends them, after the validation.

        Parameters
        ----------
        settings
            Settings of the run, by name.

        Returns
        -------
        list
            Where the user finds each run.
        """
        trainer = self.trainer
        title = (
            f"{trainer.plans_manager.dataset_name} {type(trainer).__name__} "
            f"{trainer.configuration_name} fold {trainer.fold}"
        )
        trainer_settings = {name: getattr(trainer, name) for name in _TRAINER_SETTINGS}
        trainer_settings["batch_size"] = trainer.configuration_manager.batch_size
        config = {**settings, "hparas": trainer_settings}  # nnU-Net's spelling
        trackers = open_trackers(self.folder, title, config, trainer.current_epoch)
        trainer.logger.loggers.extend(trackers)
        return [tracker.place for tracker in trackers]

    def close(self) -> None:
        """End the runs of the trackers."""
        close_trackers(self.trainer)

    def log_round(self, weights: Vector, record: RoundRecord) -> None:
        """Take one finished round into nnU-Net's log, plots, trackers and best checkpoint.

        Where the global model was not validated, the sites' own models stand in for it.
        """
        trainer = self.trainer
        validated = record.global_model or record
        epoch = trainer.current_epoch
        values = {
            "epoch_start_timestamps": record.started,
            "lrs": record.learning_rate,
            "train_losses": record.train_loss,
            "val_losses": validated.loss,
            "mean_fg_dice": validated.dice,
            "dice_per_class_or_region": list(validated.dice_per_class),
        }
        with quiet():
            load_vector(trainer.network, weights)
            trainer.print_to_log_file(f"Round {epoch}, learning rate {record.learning_rate:.5f}")
            for key, value in values.items():
                trainer.logger.log(key, value, epoch)
            trackers = trackers_of(trainer)
            for key, value in round_numbers(record).items():
                for tracker in trackers:  # nnU-Net's own log has a fixed set of keys
                    tracker.log(key, value, epoch)
            trainer.on_epoch_end()
            for tracker in trackers:
                tracker.flush()

    def save_final(self, weights: Vector) -> None:
        """Write ``checkpoint_final.pth``, and the files that inference needs beside it.

        The validation of the last round is not known yet: :meth:`finish` writes the file again.
        """
        self.write_metadata()
        with quiet():
            load_vector(self.trainer.network, weights)
            self.trainer.save_checkpoint(str(self.folder / "checkpoint_final.pth"))

    def finish(self, weights: Vector) -> None:
        """Write ``checkpoint_final.pth`` with the whole log, and end the training."""
        self.write_metadata()
        with quiet():
            load_vector(self.trainer.network, weights)
            self.trainer.on_train_end()
        for tracker in trackers_of(self.trainer):
            tracker.finished = True

    def validate(self, *, best: bool = False, npz: bool = False) -> tuple[str, float]:
        """Run the trainer's full validation of the fold; return :func:`read_headline`."""
        self.load_checkpoint(best=best)
        with quiet():
            self.trainer.perform_actual_validation(npz)
        return read_headline(self.folder)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write ``validation/summary.json`` of a validation that the sites have done."""
        (self.folder / "validation").mkdir(exist_ok=True)
        write_json(self.folder / "validation" / "summary.json", summary)
        self.log_headline()

    def log_headline(self) -> tuple[str, float]:
        """Log the headline of the validation in all trackers, as nnU-Net does; return it."""
        metric, value = read_headline(self.folder)
        name = "foreground_dice" if metric == "Dice" else metric
        self.trainer.logger.log_summary(f"final_val/{name}", value)
        return metric, value

    def load_checkpoint(self, *, best: bool = False) -> None:
        """Load the final or best weights; keep the present ones if checkpoints are switched off.

        Raises
        ------
        SettingsError
            If there is no such checkpoint yet.
        """
        if self.trainer.disable_checkpointing:
            return
        checkpoint = self.folder / ("checkpoint_best.pth" if best else "checkpoint_final.pth")
        if not checkpoint.is_file():
            raise SettingsError(f"{checkpoint} does not exist: train first, without --val.")
        with quiet():
            self.trainer.load_checkpoint(str(checkpoint))

    def save_state(self, state: ServerState) -> None:
        """Save everything that a resumed run needs, atomically.

        Only now the state of an earlier run is deleted, and the files of its network replaced.
        """
        if self.trainer.disable_checkpointing:
            return
        federation = self.folder / "federation"
        save_server_state(federation / STATE_FILE, state, self.trainer)
        drop_previous(federation)
        self.write_metadata()

    def load_state(self) -> ServerState | None:
        """Load the state of an earlier run; return ``None`` if it has finished no round.

        Raises
        ------
        CheckpointError
            If the state is damaged, or of another network.
        """
        return load_server_state(self.folder / "federation" / STATE_FILE, self.trainer)


def _notes(run: Run, trainer: FederatedRounds) -> list[str]:
    """Return a line for each thing that is not as in most federations."""
    lines = []
    lrs, shares = trainer.schedule.lrs, trainer.schedule.shares
    if not trainer.schedule.is_poly(trainer.initial_lr):
        peak = max(range(len(lrs)), key=lrs.__getitem__)
        lines.append(
            f"learning rate by {run.trainer}'s own schedule, in rounds: {lrs[0]:.3g} in round 1, "
            f"at most {max(lrs):.3g} in round {peak + 1}, {lrs[-1]:.3g} in round {len(lrs)}, the "
            "last"
        )
    if set(shares) != {1.0}:
        listed = ", ".join(f"{share:.3g}" for share in shares)
        lines.append(f"parameter groups of {run.trainer} learn with {listed} times that rate")
    epochs = trainer.epochs_of_trainer
    if epochs not in (_USUAL_EPOCHS, len(lrs)):
        lines.append(
            f"{run.trainer} has {epochs} epochs of its own; this federation has --rounds {len(lrs)}"
        )
    return lines


@contextlib.contextmanager
def _cases_elsewhere(trainer: FederatedRounds, *, elsewhere: bool) -> Iterator[None]:
    """Let nnU-Net look at a stand-in where the cases are on other machines.

    To choose a data loader, nnU-Net looks at how the preprocessed cases are stored.
    """
    if not elsewhere:
        yield
        return
    before = trainer.preprocessed_dataset_folder
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "none.b2nd").touch()
        trainer.preprocessed_dataset_folder = folder
        yield
    trainer.preprocessed_dataset_folder = before
