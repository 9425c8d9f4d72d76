"""The folder of a study: what is tuned there, and nothing else may be."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunetv2_federated.experiment.tune_plan import TuningPlan
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.files import only_one, read_state, write_atomically

STUDY_FILE = "study.json"
LOCK_FILE = ".lock"
_FORMAT = 1


@contextlib.contextmanager
def open_study_folder(folder: Path, plan: TuningPlan) -> Iterator[tuple[str, bool]]:
    """Begin a study in a folder, or check that it is the one that was begun there, and hold it.

    The lock comes before the first file. Trainings that are started within inherit it: one that
    outlives a killed command keeps a second command off.

    Parameters
    ----------
    folder
        Folder of ``--study``; created if missing.
    plan
        What is tuned.

    Yields
    ------
    tuple
        Name of the study in Optuna's database, and whether it had begun.

    Raises
    ------
    SettingsError
        If the folder is of another study, or of something else, or another process is at work on
        it.
    """
    _check(folder, plan)  # what is not ours gets no lock file either
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(only_one(folder / LOCK_FILE, _at_work(folder), inherited=True))
            name = _check(folder, plan)  # another may have begun one meanwhile
            began = name is not None
            name = name or _begin(folder / STUDY_FILE, plan)
        except OSError as error:
            raise SettingsError(f"--study {folder}: cannot be written ({error}).") from error
        yield name, began


def _at_work(folder: Path) -> str:
    return (
        f"--study {folder}: another command is at work on it, or a training that outlived a killed "
        "one; wait for it or end it."
    )


def _check(folder: Path, plan: TuningPlan) -> str | None:
    """Return the name of the study that was begun in a folder; ``None`` if none was."""
    stored = read_state(folder / STUDY_FILE, _FORMAT, "give another --study.")
    if stored is None:
        _check_empty(folder)
        return None
    different = _difference(stored, plan.identity())
    if different is not None:
        raise SettingsError(
            f"--study {folder}: holds another study, with other {different}; give another "
            "folder, or the settings it was begun with."
        )
    return str(stored["name"])


def _check_empty(folder: Path) -> None:
    try:
        there = {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return
    except OSError as error:
        raise SettingsError(f"--study {folder}: cannot be read ({error}).") from error
    # what a command leaves that was killed before it wrote the file
    if there - {LOCK_FILE, f"{STUDY_FILE}.tmp"}:
        raise SettingsError(
            f"--study {folder}: is not empty and holds no {STUDY_FILE}; give a new folder."
        )


def _begin(path: Path, plan: TuningPlan) -> str:
    """Write what is tuned; return the name of the study."""
    name = f"{plan.base.dataset} {plan.base.configuration} {uuid.uuid4().hex}"
    content = {"format": _FORMAT, "name": name, **plan.identity()}
    write_atomically(path, json.dumps(content, indent=1))
    return name


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
