"""A federation behind nnU-Net's own ``nnUNetv2_train``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nnunetv2_federated.cli.command import build
from nnunetv2_federated.cli.console import ConsoleObserver
from nnunetv2_federated.cli.flags import flag_names
from nnunetv2_federated.cli.settings_file import Source, read_settings_file
from nnunetv2_federated.cli.train import WITHOUT
from nnunetv2_federated.experiment.choices import TrainChoices
from nnunetv2_federated.experiment.resolve import resolve
from nnunetv2_federated.experiment.train import train_rounds
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.nnunet.training.tracking import close_trackers
from nnunetv2_federated.nnunet.training.trainer import FederatedRounds

SETTINGS_VARIABLE = "nnUNet_federated_settings"


def _choices(trainer: FederatedRounds, name: str) -> TrainChoices:
    """Return what nnU-Net's command line and the settings file say."""
    chosen: dict[str, Any] = {
        "dataset": trainer.plans_manager.dataset_name,
        "configuration": trainer.configuration_name,
        "fold": trainer.fold,
        "trainer": name,
        "plans": trainer.plans_manager.plans_name,
        "device": trainer.device.type,
    }
    if trainer.current_epoch > 0:
        chosen["c"] = True
    if trainer.disable_checkpointing:
        chosen["disable_checkpointing"] = True
    path = os.environ.get(SETTINGS_VARIABLE)
    if not path:
        return TrainChoices(**chosen)
    source = Source(Path(path))
    # nnU-Net's command validates a finished model next: it cannot pause
    known = set(flag_names(TrainChoices, WITHOUT)) - {"settings", "reduced", "until_round"}
    content = read_settings_file(TrainChoices, source, known)
    return build(TrainChoices, {**content, **chosen}, source, chosen)


def with_federation(trainer: type[FederatedRounds]) -> type[FederatedRounds]:
    """Return the trainer with a ``run_training`` that runs a whole federation, then validates."""

    def run_training(self: FederatedRounds) -> None:
        if self.is_ddp:  # each process of nnUNetv2_train would run a federation of its own
            raise SettingsError(
                "-num_gpus: put num_gpus into the settings file, or use nnUNetv2_train_federated."
            )
        choices = _choices(self, trainer.__name__)
        run = resolve(choices)
        with ConsoleObserver(run.settings.rounds) as console:
            train_rounds(run, self, resume=choices.c, observer=console)

    def perform_actual_validation(self: FederatedRounds, save_probabilities: bool = False) -> None:
        try:
            trainer.perform_actual_validation(self, save_probabilities)
        finally:
            close_trackers(self)  # nnUNetv2_train ends here; at exit MLflow no longer writes

    seams = {"run_training": run_training, "perform_actual_validation": perform_actual_validation}
    return type(trainer.__name__, (trainer,), seams)
