"""Build and initialise a federated trainer with the settings of a run."""

from __future__ import annotations

import contextlib
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from nnunetv2_federated.federation.errors import FederationError, SettingsError
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.nnunet.data.dataset import Dataset
from nnunetv2_federated.nnunet.training.trainer import FederatedRounds, federated_trainer
from nnunetv2_federated.nnunet.training.trainer_schedule import declared_rates


def build_trainer(
    run: Run, dataset: Dataset, trainer_class: type[FederatedRounds] | None = None
) -> FederatedRounds:
    """Build, but do not initialise, the trainer of a run for one dataset.

    Parameters
    ----------
    run
        Run with the trainer's name and settings.
    dataset
        Dataset with the plans.
    trainer_class
        Federated trainer to build; ``None`` to find it by the run's name of it.

    Raises
    ------
    SettingsError
        If the trainer refuses plans or dataset, saves no model, or results cannot be written.
    """
    plans = deepcopy(dataset.plans)
    plans["continue_training"] = False
    if run.settings.batch_size is not None:  # some constructors compute with the batch size
        plans["configurations"][run.configuration]["batch_size"] = run.settings.batch_size
    trainer_class = trainer_class or federated_trainer(run.trainer)
    try:
        trainer = trainer_class(
            plans=plans,
            configuration=run.configuration,
            fold=run.fold,
            dataset_json=deepcopy(dataset.dataset_json),
            device=torch.device(run.device),
        )
    except SettingsError:
        raise
    except OSError as error:  # nnU-Net's constructor makes its folder and log
        raise results_not_writable(error) from error
    except Exception as error:  # whatever a trainer raises over its plans or dataset
        raise _refused(run, error) from error
    if trainer.disable_checkpointing:
        raise SettingsError(
            f"trainer {run.trainer} saves no model, as nnU-Net's benchmarks do: there is nothing "
            "to federate; give a trainer that does."
        )
    configure(trainer, run)
    return trainer


def initialize(trainer: FederatedRounds, run: Run) -> None:
    """Let a trainer build its network and optimizer, and check that it uses the settings.

    Raises
    ------
    SettingsError
        If the trainer cannot be initialised, or ignores a setting.
    """
    try:
        trainer.initialize()
    except FederationError:
        raise
    except Exception as error:  # whatever a trainer raises over its plans
        raise _refused(run, error) from error
    _check_taken(trainer, run)


def _refused(run: Run, error: Exception) -> SettingsError:
    if isinstance(error, ValueError):
        return SettingsError(f"{run.trainer}: {error}")
    reason = clean(error, 300) or "it says no more"
    kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
    return SettingsError(
        f"trainer {run.trainer} cannot be built for {run.configuration} of {run.dataset} on "
        f"{run.device}: {kind}{reason}"
    )


def _check_taken(trainer: FederatedRounds, run: Run) -> None:
    """Refuse a setting that a trainer with a value of its own would ignore without a word."""
    groups = trainer.optimizer.param_groups
    rates = (*declared_rates(trainer.optimizer), *trainer.schedule.lrs)
    decays = [group["weight_decay"] for group in groups if "weight_decay" in group]
    for flag, given, used in (
        ("--initial-lr", run.settings.initial_lr, rates),
        ("--weight-decay", run.settings.weight_decay, decays),
    ):
        if given is None or any(math.isclose(given, value) for value in used):
            continue
        values = ", ".join(f"{value:g}" for value in dict.fromkeys(used[: len(groups)])) or "none"
        raise SettingsError(
            f"{flag} {given:g}: {type(trainer.optimizer).__name__} of trainer {run.trainer} has "
            f"its own ({values}); leave the flag out, or let the trainer take it."
        )


def results_not_writable(error: OSError) -> SettingsError:
    """Return the error for a results folder that cannot be written."""
    return SettingsError(
        f"nnUNet_results cannot be written ({error}): point nnUNet_results at a folder you may "
        "write to."
    )


def configure(trainer: FederatedRounds, run: Run) -> None:
    """Apply the settings of a run to a trainer that is not initialised yet."""
    settings = run.settings
    if settings.iterations_per_epoch is not None:
        trainer.num_iterations_per_epoch = settings.iterations_per_epoch
    if settings.val_iterations is not None:
        trainer.num_val_iterations_per_epoch = settings.val_iterations
    trainer.num_epochs = settings.rounds
    trainer.momentum_of_run = settings.momentum
    trainer.lr_schedule_of_run = settings.lr_schedule
    trainer.trainable_of_run = settings.dp_trainable
    # in the plans, too: the result's plans.json must describe what was trained
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
    """Make a trainer that was just built write into ``folder`` in place of its result folder.

    nnU-Net's constructor has already created the result folder and a log file, which only rank 0
    has: the log file is moved, and folders that are then empty are removed. The file is named after
    the second, so trainers that are built at the same time in several processes write into one, and
    one of them takes it away.
    """
    folder.mkdir(parents=True, exist_ok=True)
    old, log = Path(trainer.output_folder), Path(trainer.log_file)
    trainer.output_folder = trainer.output_folder_base = str(folder)
    trainer.log_file = str(folder / log.name)
    if trainer.local_rank > 0:
        return
    with contextlib.suppress(FileNotFoundError):
        log.replace(trainer.log_file)
    for parent in (old, old.parent, old.parent.parent):
        try:
            parent.rmdir()
        except OSError:  # not empty, or gone
            break
