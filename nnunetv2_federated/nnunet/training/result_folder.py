"""The result folder of a run: only one run at a time writes there, and no earlier run is lost.

A run that is started anew keeps the earlier run's folder ``federation`` as ``federation.previous``
until its own first round is saved. Whenever it is killed, one of the two folders is complete.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from nnunetv2.paths import nnUNet_results

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.files import only_one, write_atomically
from nnunetv2_federated.federation.run import RUN_FILE, Run
from nnunetv2_federated.federation.study import StudyTerms, trial_name
from nnunetv2_federated.nnunet.data.dataset import check_environment
from nnunetv2_federated.nnunet.training.build_trainer import results_not_writable
from nnunetv2_federated.nnunet.training.trainer import federated_trainer

LOCK_FILE = ".lock"
STATE_FILE = "state.pt"
"""State of the server in a federation's folder, from the first finished round on."""
_PREVIOUS = "federation.previous"

_locked: set[Path] = set()
"""Datasets that this process holds the lock of."""


def result_folder(run: Run) -> Path:
    """Return ``nnUNet_results/<Dataset>/<Trainer>__<Plans>__<configuration>/fold_X`` of a run.

    At a site a trial of a study has its own below ``nnUNet_results/studies``; at the coordinator
    ``nnUNet_results`` is that of the trial.
    """
    check_environment()
    results = Path(nnUNet_results.require())
    if run.study is not None and run.trial is not None and not run.remote_sites:
        results = study_folder(run.study) / trial_name(run.trial)
    trainer = federated_trainer(run.trainer).__name__
    name = f"{trainer}__{run.plans_name}__{run.configuration}"
    return results / run.dataset / name / f"fold_{run.fold}"


def study_folder(study: StudyTerms) -> Path:
    """Return the folder of a study's trials at a site on another machine."""
    return Path(nnUNet_results.require()) / "studies" / study.study_id


def drop_trials(study: StudyTerms, trials: Iterable[int]) -> None:
    """Delete what a site needs to continue trials that get no more rounds; logs stay."""
    for number in trials:
        for sites in (study_folder(study) / trial_name(number)).glob("*/*/fold_*/federation/sites"):
            shutil.rmtree(sites, ignore_errors=True)


def federation_folder(run: Run) -> Path:
    """Return the folder with a run's settings and everything from which it can be resumed."""
    return result_folder(run) / "federation"


@contextlib.contextmanager
def one_run(folder: Path) -> Iterator[None]:
    """Keep other commands from writing into the result folder of a fold meanwhile.

    Parameters
    ----------
    folder
        Result folder of :func:`result_folder`; created if missing.

    Raises
    ------
    SettingsError
        If another process holds the folder, or it cannot be written.
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
    """Keep other processes from planning or preprocessing a dataset meanwhile.

    This process may enter it again while it is within.

    Parameters
    ----------
    dataset
        Folder of the dataset in ``nnUNet_preprocessed``, which need not exist.

    Raises
    ------
    SettingsError
        If another process holds the dataset, or ``nnUNet_preprocessed`` cannot be written.
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
    """Create the folder of a new run; that of an earlier run is kept under another name.

    Parameters
    ----------
    folder
        Folder of :func:`federation_folder`.
    run
        Run that is written to ``run.json`` in the folder.
    saved
        Whether the earlier run has saved a round; ``None`` to look for the server's state.

    Raises
    ------
    OSError
        If the folder cannot be written; the earlier run is then put back.
    """
    previous = folder.with_name(_PREVIOUS)
    if (folder / STATE_FILE).is_file() if saved is None else saved:
        shutil.rmtree(previous, ignore_errors=True)
        folder.replace(previous)
    try:
        shutil.rmtree(folder, ignore_errors=True)  # that of a run that has finished no round
        folder.mkdir(parents=True)
        write_atomically(folder / RUN_FILE, run.to_json())
    except OSError:
        put_back(folder)
        raise


def put_back(folder: Path) -> None:
    """Undo :func:`begin`, unless the new run has saved a round."""
    previous = folder.with_name(_PREVIOUS)
    if previous.is_dir() and not (folder / STATE_FILE).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        previous.replace(folder)


def has_previous(folder: Path) -> bool:
    """Whether the run before is kept, because this one has not saved a round yet."""
    return folder.with_name(_PREVIOUS).is_dir()


def drop_previous(folder: Path) -> None:
    """Delete the run before, after a round of this one was saved."""
    shutil.rmtree(folder.with_name(_PREVIOUS), ignore_errors=True)


def way_back(folder: Path) -> str:
    """Say how to continue the run before, while no round of the new one is saved."""
    previous = folder.with_name(_PREVIOUS)
    first = f"delete {folder} and " if folder.is_dir() else ""
    return f"{first}rename {previous} to {folder.name}, then --c"


def no_earlier_run(folder: Path) -> SettingsError:
    """Return the error for ``--c`` without an earlier run; it names a run that is kept."""
    if has_previous(folder):
        return SettingsError(
            f"--c: a start without --c was stopped before its first round and left no run in "
            f"{folder}; to go on with the one before, {way_back(folder)}."
        )
    return SettingsError(f"--c: no earlier run in {folder}; start it without --c.")
