"""Build a federated trainer from a run's settings."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import torch

from nnunetv2_federated.federation.settings import Run
from nnunetv2_federated.training.dataset import Dataset
from nnunetv2_federated.training.trainer import FederatedRounds, federated_trainer


def build_trainer(
    run: Run, dataset: Dataset, trainer_class: type[FederatedRounds] | None = None
) -> FederatedRounds:
    """Construct, but do not initialise, the run's trainer for one dataset."""
    plans = deepcopy(dataset.plans)
    plans["continue_training"] = False
    trainer = (trainer_class or federated_trainer(run.trainer))(
        plans=plans,
        configuration=run.configuration,
        fold=run.fold,
        dataset_json=deepcopy(dataset.dataset_json),
        device=torch.device(run.device),
    )
    configure(trainer, run)
    return trainer


def configure(trainer: FederatedRounds, run: Run) -> None:
    """Apply the run's settings to a trainer that is not initialised yet."""
    settings = run.settings
    trainer.num_iterations_per_epoch = settings.iterations_per_epoch
    trainer.num_val_iterations_per_epoch = settings.val_iterations
    trainer.num_epochs = settings.rounds
    trainer.momentum = settings.momentum
    if settings.batch_size is not None:
        # in the plans too: the plans.json of the result says what was trained
        plans = trainer.plans_manager.plans
        plans["configurations"][run.configuration]["batch_size"] = settings.batch_size
        trainer.configuration_manager.configuration["batch_size"] = settings.batch_size
    if settings.initial_lr is not None:
        trainer.initial_lr = settings.initial_lr
    if settings.weight_decay is not None:
        trainer.weight_decay = settings.weight_decay


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
