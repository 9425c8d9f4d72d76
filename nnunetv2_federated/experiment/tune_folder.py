"""The folder of a study: what is tuned there, and nothing else may be."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_federated.experiment.tune_plan import TuningPlan
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.files import read_state, write_atomically

STUDY_FILE = "study.json"
LOCK_FILE = ".lock"
_FORMAT = 1


def open_study_folder(folder: Path, plan: TuningPlan) -> tuple[str, bool]:
    """Begin a study in a folder, or check that it is the one that was begun there.

    Parameters
    ----------
    folder
        Folder of ``--study``; created if missing.
    plan
        What is tuned.

    Returns
    -------
    tuple
        Name of the study in Optuna's database, and whether it had begun.

    Raises
    ------
    SettingsError
        If the folder is of another study, or of something else.
    """
    path, asked = folder / STUDY_FILE, plan.identity()
    stored = read_state(path, _FORMAT, "give another --study.")
    if stored is not None:
        different = _difference(stored, asked)
        if different is not None:
            raise SettingsError(
                f"--study {folder}: holds another study, with other {different}; give another "
                "folder, or the settings it was begun with."
            )
        return str(stored["name"]), True
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # what a command leaves that was killed before it wrote the file
        if {path.name for path in folder.iterdir()} - {LOCK_FILE, f"{STUDY_FILE}.tmp"}:
            raise SettingsError(
                f"--study {folder}: is not empty and holds no {STUDY_FILE}; give a new folder."
            )
        name = f"{plan.base.dataset} {plan.base.configuration} {uuid.uuid4().hex}"
        content = {"format": _FORMAT, "name": name, **asked}
        write_atomically(path, json.dumps(content, indent=1))
    except OSError as error:
        raise SettingsError(f"--study {folder}: cannot be written ({error}).") from error
    return name, False


def _difference(
    stored: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = ""
) -> str | None:
    """Return the first key that differs, as ``search initial_lr`` or ``run settings rounds``."""
    for key in {**asked, **stored}:
        if key == "name" and not prefix:
            continue
        ours, theirs = asked.get(key), stored.get(key)
        if ours == theirs:
            continue
        if isinstance(ours, dict) and isinstance(theirs, dict):
            return _difference(theirs, ours, f"{prefix}{key} ")
        return f"{prefix}{key}"
    return None
