"""Build a federated trainer from a run's settings."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.settings import Run
from nnunetv2_federated.training.dataset import Dataset
from nnunetv2_federated.training.trainer import FederatedRounds, federated_trainer


def build_trainer(
    run: Run, dataset: Dataset, trainer_class: type[FederatedRounds] | None = None
) -> FederatedRounds:
    """Construct, but do not initialise, the run's trainer for one dataset."""
    plans = deepcopy(dataset.plans)
    plans["continue_training"] = False
    try:
        trainer = (trainer_class or federated_trainer(run.trainer))(
            plans=plans,
            configuration=run.configuration,
            fold=run.fold,
            dataset_json=deepcopy(dataset.dataset_json),
            device=torch.device(run.device),
        )
    except ValueError as error:  # a trainer that refuses its plans or dataset
        raise SettingsError(f"{run.trainer}: {error}") from error
    except OSError as error:  # nnU-Net's constructor makes its folder and log
        raise results_not_writable(error) from error
    configure(trainer, run)
    return trainer


def results_not_writable(error: OSError) -> SettingsError:
    """Say that the results folder is the trouble."""
    return SettingsError(
        f"nnUNet_results cannot be written ({error}): point nnUNet_results at a folder you may "
        "write to."
    )


def configure(trainer: FederatedRounds, run: Run) -> None:
    """Apply the run's settings to a trainer that is not initialised yet."""
    settings = run.settings
    if settings.iterations_per_epoch is not None:
        trainer.num_iterations_per_epoch = settings.iterations_per_epoch
    if settings.val_iterations is not None:
        trainer.num_val_iterations_per_epoch = settings.val_iterations
    trainer.num_epochs = settings.rounds
    trainer.momentum = settings.momentum
    # in the plans too: the plans.json of the result says what was trained
    for content in (
        trainer.plans_manager.plans["configurations"][run.configuration],
        trainer.configuration_manager.configuration,
    ):
        if settings.batch_size is not None:
            content["batch_size"] = settings.batch_size
        if settings.batchnorm == "group":
            _use_group_norm(content, run.configuration)
    if settings.initial_lr is not None:
        trainer.initial_lr = settings.initial_lr
    if settings.weight_decay is not None:
        trainer.weight_decay = settings.weight_decay


def _use_group_norm(configuration: dict[str, Any], name: str) -> None:
    arguments = configuration.get("architecture", {}).get("arch_kwargs", {})
    if "norm" not in arguments:
        raise SettingsError(
            f"--batchnorm group: the network of {name} has no choice of norm; use average or local."
        )
    arguments["norm"] = "group"


def move_output(trainer: FederatedRounds, folder: Path) -> None:
    """Let a trainer that was just constructed write into ``folder`` instead.

    nnU-Net's constructor has already made its result folder and a log file; the log moves along and
    folders left empty are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    old, log = Path(trainer.output_folder), Path(trainer.log_file)
    trainer.output_folder = trainer.output_folder_base = str(folder)
    trainer.log_file = str(folder / log.name)
    log.replace(trainer.log_file)
    for parent in (old, old.parent, old.parent.parent):
        if any(parent.iterdir()):
            break
        parent.rmdir()
