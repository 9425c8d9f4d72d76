"""A federation behind nnU-Net's own ``nnUNetv2_train``."""

from __future__ import annotations

import os
from pathlib import Path

from nnunetv2_federated.cli.console import ConsoleObserver
from nnunetv2_federated.cli.options import read_settings_file
from nnunetv2_federated.cli.train_flags import build_parser
from nnunetv2_federated.experiment.options import Options
from nnunetv2_federated.experiment.resolve import build_run
from nnunetv2_federated.experiment.train import train_rounds
from nnunetv2_federated.nnunet.training.tracking import close_trackers
from nnunetv2_federated.nnunet.training.trainer import FederatedRounds

SETTINGS_VARIABLE = "nnUNet_federated_settings"


def _options() -> Options:
    path = os.environ.get(SETTINGS_VARIABLE)
    if not path:
        return {}
    flags = {a.dest for a in build_parser()._actions if a.option_strings}  # no other way
    return read_settings_file(Path(path), flags)


def with_federation(trainer: type[FederatedRounds]) -> type[FederatedRounds]:
    """Return the trainer with a ``run_training`` that runs a whole federation, then validates."""

    def run_training(self: FederatedRounds) -> None:
        options = _options()
        options["trainer"] = trainer.__name__
        options["plans"] = self.plans_manager.plans_name
        if self.current_epoch > 0:
            options["c"] = True
        if self.disable_checkpointing:
            options["disable_checkpointing"] = True
        run = build_run(
            options,
            self.plans_manager.dataset_name,
            self.configuration_name,
            self.fold,
            self.device.type,
        )
        with ConsoleObserver(run.settings.rounds) as console:
            train_rounds(run, self, resume="c" in options, observer=console)

    def perform_actual_validation(self: FederatedRounds, save_probabilities: bool = False) -> None:
        try:
            trainer.perform_actual_validation(self, save_probabilities)
        finally:
            close_trackers(self)  # nnUNetv2_train ends here; at exit MLflow no longer writes

    seams = {"run_training": run_training, "perform_actual_validation": perform_actual_validation}
    return type(trainer.__name__, (trainer,), seams)
