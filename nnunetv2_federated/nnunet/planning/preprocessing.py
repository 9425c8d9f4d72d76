"""nnU-Net's preprocessing of a dataset in which the federation's plans are installed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json, save_json
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_federated.federation.disk import naming_the_disk
from nnunetv2_federated.federation.messages import PrepareTask
from nnunetv2_federated.nnunet.data.dataset import preprocessed_cases
from nnunetv2_federated.nnunet.environment import quiet


def preprocess(folder: Path, task: PrepareTask, processes: Mapping[str, int]) -> None:
    """Preprocess all cases of a dataset with the federation's plans.

    Parameters
    ----------
    folder
        Folder of the dataset in ``nnUNet_preprocessed``, with the plans.
    task
        Plans, and the configurations to preprocess.
    processes
        Number of processes by configuration.

    Raises
    ------
    OSError
        If the disk is full or may not be written.
    """
    with quiet(), naming_the_disk(folder):
        preprocess_dataset(
            int(folder.name[len("Dataset") :][:3]),
            task.plans["plans_name"],
            task.configurations,
            [processes[configuration] for configuration in task.configurations],
            show_progress_bar=sys.stderr.isatty(),
        )


def copy_splits(raw: Path, preprocessed: Path) -> None:
    """Copy the raw dataset's own folds, if there are any, as nnU-Net's planner does."""
    source, target = (folder / "splits_final.json" for folder in (raw, preprocessed))
    if source.is_file() and not target.exists():
        save_json(load_json(str(source)), str(target), sort_keys=False)


def count_preprocessed(folder: Path, task: PrepareTask) -> dict[str, int]:
    """Return the number of preprocessed cases of each configuration.

    Raises
    ------
    SettingsError
        If a folder holds something else beside preprocessed cases; names the files.
    """
    plans = PlansManager(task.plans)
    folders = {
        name: folder / str(plans.get_configuration(name).data_identifier)
        for name in task.configurations
    }
    return {name: len(preprocessed_cases(path)) for name, path in folders.items()}
