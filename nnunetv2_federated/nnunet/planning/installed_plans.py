"""The federation's plans and fingerprint in a preprocessed dataset, at a site or the server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import load_json, save_json

from nnunetv2_federated.federation.agreement import hash_plans
from nnunetv2_federated.federation.messages import PrepareTask

_FINGERPRINT = "dataset_fingerprint.json"
_FINGERPRINT_OF_SITE = "dataset_fingerprint_of_site.json"


def other_plans(folder: Path, task: PrepareTask) -> str | None:
    """Return why the federation's plans cannot be installed; ``None`` if they can.

    They cannot if the dataset has different plans of that name, which may not be replaced.

    Parameters
    ----------
    folder
        Folder of the dataset in ``nnUNet_preprocessed``.
    task
        Plans, and whether they may replace others.
    """
    name = task.plans["plans_name"]
    plans_file = folder / f"{name}.json"
    if task.replace_plans or not plans_file.is_file():
        return None
    present = hash_plans(load_json(str(plans_file)))
    if present == task.plans_hash:
        return None
    return (
        f"has other plans named {name} already (hash {present[:12]}, the federation's "
        f"{task.plans_hash[:12]}); nothing was changed. Choose another name with "
        "-overwrite_plans_name, or --replace-plans."
    )


def install_plans(folder: Path, task: PrepareTask, dataset_json: Mapping[str, Any]) -> Path:
    """Write the federation's plans and fingerprint into a preprocessed dataset.

    A fingerprint that stock planning left there is kept under another name: it describes the
    site's own cases.

    Parameters
    ----------
    folder
        Folder of the dataset in ``nnUNet_preprocessed``; created if missing.
    task
        Plans and fingerprint of the federation.
    dataset_json
        ``dataset.json`` of the dataset.

    Returns
    -------
    Path
        File of the plans.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_json(dict(dataset_json), str(folder / "dataset.json"), sort_keys=False)
    path, kept = folder / _FINGERPRINT, folder / _FINGERPRINT_OF_SITE
    if path.is_file() and not kept.exists() and load_json(str(path)) != task.fingerprint:
        path.replace(kept)
    save_json(task.fingerprint, str(path))
    plans_file = folder / f"{task.plans['plans_name']}.json"
    save_json({"dataset_name": folder.name, **task.plans}, str(plans_file), sort_keys=False)
    return plans_file
