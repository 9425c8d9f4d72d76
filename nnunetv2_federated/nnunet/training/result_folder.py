"""Where a run's results are: one run at a time writes there, and none loses an earlier one.

A run that is started anew keeps the earlier one's ``federation`` as ``federation.previous`` until
its own first round is saved. Whenever it is killed, one of the two is whole.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from nnunetv2.paths import nnUNet_results

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.files import only_one, write_atomically
from nnunetv2_federated.federation.run import RUN_FILE, Run
from nnunetv2_federated.nnunet.data.dataset import check_environment
from nnunetv2_federated.nnunet.training.build_trainer import results_not_writable
from nnunetv2_federated.nnunet.training.trainer import federated_trainer

LOCK_FILE = ".lock"
STATE_FILE = "state.pt"
"""In a federation's folder, from its first finished round on."""
_PREVIOUS = "federation.previous"

_locked: set[Path] = set()
"""Datasets that this process prepares."""


def result_folder(run: Run) -> Path:
    """``nnUNet_results/<Dataset>/<Trainer>__<Plans>__<configuration>/fold_X``."""
    check_environment()
    trainer = federated_trainer(run.trainer).__name__
    name = f"{trainer}__{run.plans_name}__{run.configuration}"
    return Path(nnUNet_results.require()) / run.dataset / name / f"fold_{run.fold}"


def federation_folder(run: Run) -> Path:
    """Where a run keeps its settings and everything it can be resumed from."""
    return result_folder(run) / "federation"


@contextlib.contextmanager
def one_run(folder: Path) -> Iterator[None]:
    """Let no other command write into the result folder of a fold meanwhile.

    Parameters
    ----------
    folder
        What :func:`result_folder` returns; made if it is absent.

    Raises
    ------
    SettingsError
        If another process holds it, or it cannot be written.
    """
    busy = (
        f"another command is at work in {folder}; wait until it ends, or stop it. A run of its own "
        "needs another fold, trainer or nnUNet_results."
    )
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(only_one(folder / LOCK_FILE, busy, remove=True))
        except OSError as error:
            raise results_not_writable(error) from error
        yield


@contextlib.contextmanager
def one_preparation(dataset: Path) -> Iterator[None]:
    """Let no other process plan or preprocess a dataset meanwhile; this one may say so again.

    Parameters
    ----------
    dataset
        Its folder under ``nnUNet_preprocessed``, which need not exist.

    Raises
    ------
    SettingsError
        If another process holds it, or ``nnUNet_preprocessed`` cannot be written.
    """
    if dataset in _locked:
        yield
        return
    busy = f"another command plans or preprocesses {dataset}; wait until it ends, or stop it."
    with contextlib.ExitStack() as held:
        try:
            # beside the folder: an empty one would pass for a dataset that is planned
            lock = dataset.with_name(f".{dataset.name}.lock")
            held.enter_context(only_one(lock, busy, remove=True))
        except OSError as error:
            raise SettingsError(
                f"nnUNet_preprocessed cannot be written ({error}): point it at a folder you may "
                "write to."
            ) from error
        _locked.add(dataset)
        try:
            yield
        finally:
            _locked.discard(dataset)


def begin(folder: Path, run: Run, *, saved: bool | None = None) -> None:
    """Make the folder of a new run, and set what an earlier one can be resumed from aside.

    Parameters
    ----------
    folder
        What :func:`federation_folder` returns.
    run
        Written to ``run.json`` in it.
    saved
        Whether the earlier run has saved a round; ``None`` to look for the server's state.

    Raises
    ------
    OSError
        If the folder cannot be written; the earlier run is where it was.
    """
    previous = folder.with_name(_PREVIOUS)
    if (folder / STATE_FILE).is_file() if saved is None else saved:
        shutil.rmtree(previous, ignore_errors=True)
        folder.replace(previous)
    try:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that has finished no round
        folder.mkdir(parents=True)
        write_atomically(folder / RUN_FILE, run.to_json())
    except OSError:
        put_back(folder)
        raise


def put_back(folder: Path) -> None:
    """Undo :func:`begin` for a run that has saved no round."""
    previous = folder.with_name(_PREVIOUS)
    if previous.is_dir() and not (folder / STATE_FILE).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        previous.replace(folder)


def has_previous(folder: Path) -> bool:
    """Whether a run before is kept, for want of a saved round in this one."""
    return folder.with_name(_PREVIOUS).is_dir()


def drop_previous(folder: Path) -> None:
    """Delete the run before, once a round of this one is saved."""
    shutil.rmtree(folder.with_name(_PREVIOUS), ignore_errors=True)


def way_back(folder: Path) -> str:
    """Say how to go on with the run before, while no round of the new one is saved."""
    previous = folder.with_name(_PREVIOUS)
    first = f"delete {folder} and " if folder.is_dir() else ""
    return f"{first}rename {previous} to {folder.name}, then --c"


def no_earlier_run(folder: Path) -> SettingsError:
    """Say that there is nothing to go on with, or where it is."""
    if has_previous(folder):
        return SettingsError(
            f"--c: a start without --c was stopped before its first round and left no run in "
            f"{folder}; to go on with the one before, {way_back(folder)}."
        )
    return SettingsError(f"--c: no earlier run in {folder}; start it without --c.")
