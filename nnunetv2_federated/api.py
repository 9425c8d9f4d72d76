"""What a notebook calls: the commands as functions, with their choices as keyword arguments.

The package exports these functions: ``import nnunetv2_federated as federated`` is enough. Each
takes the choices of its command by the names that a settings file has, checked in the same words,
and prints its progress unless it is told otherwise.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from nnunetv2_federated.cli.console import ConsoleObserver, say
from nnunetv2_federated.experiment import best_configuration as choosing
from nnunetv2_federated.experiment import compare as comparing
from nnunetv2_federated.experiment import evaluate as evaluating
from nnunetv2_federated.experiment import partition as dealing
from nnunetv2_federated.experiment import plan as planning
from nnunetv2_federated.experiment import queue as queueing
from nnunetv2_federated.experiment import release as releasing
from nnunetv2_federated.experiment import train as training
from nnunetv2_federated.experiment import train_queue as queue_training
from nnunetv2_federated.experiment import tune as tuning
from nnunetv2_federated.experiment import verify_release as verifying
from nnunetv2_federated.experiment.best_configuration import Chosen
from nnunetv2_federated.experiment.choices import (
    BestChoices,
    CompareChoices,
    PartitionChoices,
    PlanChoices,
    TrainChoices,
)
from nnunetv2_federated.experiment.compare import ComparisonResult
from nnunetv2_federated.experiment.evaluate import EvaluationResult
from nnunetv2_federated.experiment.evaluate_choices import EvaluateChoices
from nnunetv2_federated.experiment.partition import Partition
from nnunetv2_federated.experiment.queue import Training
from nnunetv2_federated.experiment.release import Release
from nnunetv2_federated.experiment.release_choices import ReleaseChoices
from nnunetv2_federated.experiment.resolve import resolve
from nnunetv2_federated.experiment.train import TrainedModel
from nnunetv2_federated.experiment.train_queue import HowToTrain
from nnunetv2_federated.experiment.tune_choices import TuneChoices
from nnunetv2_federated.experiment.tune_result import TuningResult
from nnunetv2_federated.experiment.verify_release import VerifiedRelease
from nnunetv2_federated.federation.choice import Choices, hints_of, names_of, parts_of, spell_key
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.run import Run

C = TypeVar("C", bound=Choices)


def partition(dataset: int | str, **choices: object) -> Partition:
    """Deal a dataset's cases to sites, save the partition for trainings, and draw it.

    Parameters
    ----------
    dataset
        Id or name of a preprocessed dataset.
    **choices
        Choices of ``nnUNetv2_partition``: ``sites=5, partition="hybrid", alpha=0.5``, or
        ``partition="column", case_table="cases.csv", by="hospital"``.

    Raises
    ------
    SettingsError
        If the dataset is not preprocessed, or cannot be dealt as chosen.
    """
    return dealing.partition(_choose(PartitionChoices, dataset=dataset, **choices))


def plan(
    datasets: Sequence[int | str], *, say: Callable[[str], None] = say, **choices: object
) -> dict[str, Any]:
    """Plan once for datasets whose images may not be put together, and preprocess each.

    Parameters
    ----------
    datasets
        Ids or names of raw datasets, one for each site.
    say
        Receives what happens, one line each.
    **choices
        Choices of ``nnUNetv2_plan_and_preprocess_federated``: ``configurations=["2d"]``.

    Returns
    -------
    dict
        nnU-Net's plans, the same at every site.

    Raises
    ------
    FederationError
        If the datasets differ in what must be equal, or a case cannot be used.
    """
    return planning.plan(_choose(PlanChoices, datasets=list(datasets), **choices), say).plans


def create_run(dataset: int | str, configuration: str, fold: int | str, **choices: object) -> Run:
    """Make every choice of a training, and check it.

    Parameters
    ----------
    dataset
        Id or name of a preprocessed dataset.
    configuration
        Configuration of the plans, such as ``2d`` or ``3d_fullres``.
    fold
        Fold, 0 to 4, or ``all``.
    **choices
        Choices of ``nnUNetv2_train_federated``: ``rounds=100, strategy="fedprox",
        strategy_options={"proximal_mu": 0.1}``. With ``c=True`` the run that was begun.

    Raises
    ------
    SettingsError
        If a choice is not possible; says what came, what is allowed and how to fix it.
    """
    target = {"dataset": dataset, "configuration": configuration, "fold": fold}
    return resolve(_choose(TrainChoices, **target, **choices))


def train(
    run: Run,
    *,
    resume: bool = False,
    observer: Observer | None = None,
    backend: str = "in-process",
    best: bool = False,
    npz: bool = False,
    until: int | None = None,
) -> TrainedModel:
    """Train all rounds of a run, and validate the global model.

    An interrupted training (Ctrl-C, a notebook's stop button, a power cut) continues after its last
    finished round with ``resume``.

    Parameters
    ----------
    run
        Run of :func:`create_run`.
    resume
        Continue the run where an earlier call stopped.
    observer
        Receives progress; ``None`` to print a line a round, and to draw bars in a terminal or a
        notebook. ``Observer()`` is silent.
    backend
        ``in-process``, or ``ray`` for several GPUs.
    best
        Validate ``checkpoint_best.pth`` in place of ``checkpoint_final.pth``.
    npz
        Save the softmax outputs of the validation.
    until
        Pause after this round, counted from 1; ``None`` to train all.

    Raises
    ------
    FederationError
        If the run cannot be trained as asked, or the federation failed. A refused run leaves an
        earlier one as it was.
    """
    with contextlib.ExitStack() as shown:
        if observer is None:
            observer = shown.enter_context(ConsoleObserver(run.settings.rounds))
        return training.train(
            run,
            resume=resume,
            observer=observer,
            backend=backend,
            best=best,
            npz=npz,
            until=until,
        )


def create_queue(
    dataset: int | str,
    configurations: Sequence[str],
    folds: Sequence[int | str],
    **choices: object,
) -> list[Training]:
    """Make every choice of several trainings, which share their sites and settings.

    Parameters
    ----------
    dataset
        Id or name of a preprocessed dataset.
    configurations
        Configurations of the plans; each is trained on all folds.
    folds
        Folds, 0 to 4, or ``all``.
    **choices
        As of :func:`create_run`. With ``c=True`` the queue that was begun.

    Raises
    ------
    SettingsError
        If a choice is not possible; says what came, what is allowed and how to fix it.
    """
    target = {"configurations": list(configurations), "folds": list(folds)}
    first = {"configuration": next(iter(configurations), ""), "fold": next(iter(folds), 0)}
    return queueing.resolve_queue(
        _choose(TrainChoices, dataset=dataset, **target, **first, **choices)
    )


def train_queue(
    queue: Sequence[Training],
    *,
    observer: Observer | None = None,
    backend: str = "in-process",
    best: bool = False,
    npz: bool = False,
    parallel: int = 1,
) -> list[TrainedModel]:
    """Train all of a queue that is not finished, and validate each global model.

    Parameters
    ----------
    queue
        Trainings of :func:`create_queue`.
    observer, backend, best, npz
        As of :func:`train`.
    parallel
        Trainings at a time, each in a process of its own, on the GPUs in turn.

    Raises
    ------
    FederationError
        If a training cannot be done as asked, or failed; those before it are finished, and the
        queue of ``create_queue(..., c=True)`` goes on.
    """
    with contextlib.ExitStack() as shown:
        if observer is None:
            rounds = queue[0].run.settings.rounds
            observer = shown.enter_context(ConsoleObserver(rounds))
        how = HowToTrain(observer, backend, None, best, npz, parallel)
        return queue_training.train_queue(queue, how)


def find_best_configuration(
    dataset: int | str, *, say: Callable[[str], None] = say, **choices: object
) -> Chosen:
    """Choose the best configuration or ensemble, and its postprocessing, by nnU-Net's rules.

    Parameters
    ----------
    dataset
        Id or name of the dataset.
    say
        Receives what happens, one line each.
    **choices
        Choices of ``nnUNetv2_find_best_configuration_federated``:
        ``configurations=["2d", "3d_fullres"], folds=[0, 1]``.

    Raises
    ------
    SettingsError
        If a fold is not trained and validated, or predictions are missing; nothing is written.
    """
    return choosing.find_best_configuration(_choose(BestChoices, dataset=dataset, **choices), say)


def compare(
    dataset: int | str,
    configuration: str,
    folds: Sequence[int | str],
    *,
    say: Callable[[str], None] = say,
    **choices: object,
) -> ComparisonResult:
    """Train and test local, federated and centralised models side by side; write a report.

    Interrupted, the same call continues.

    Parameters
    ----------
    dataset
        Id or name of a preprocessed dataset that has the cases of all sites.
    configuration
        Configuration of the plans, such as ``2d``.
    folds
        Folds to train.
    say
        Receives what happens, one line each.
    **choices
        Choices of ``nnUNetv2_federated_compare``: ``strategies=["fedavg", "fedprox"]``.

    Raises
    ------
    SettingsError
        If a model cannot be trained or tested as chosen.
    """
    target = {"dataset": dataset, "configuration": configuration, "folds": list(folds)}
    chosen = _choose(CompareChoices, **target, **choices)
    return comparing.compare(chosen, say=say, note=_note)


def tune(
    dataset: int | str,
    configuration: str,
    fold: int | str,
    study: str | Path,
    search: Mapping[str, Any],
    *,
    say: Callable[[str], None] = say,
    **choices: object,
) -> TuningResult:
    """Find settings of a federation with Optuna; needs the extra ``[tune]``.

    Interrupted, the same call goes on.

    Parameters
    ----------
    dataset
        Id or name of a preprocessed dataset.
    configuration
        Configuration of the plans, such as ``2d``.
    fold
        Fold by whose validation cases is chosen.
    study
        Folder of the study.
    search
        Settings to vary: ``{"initial_lr": {"low": 1e-3, "high": 0.1, "log": True}, "strategy":
        ["fedavg", "fedprox"], "fedprox.proximal_mu": [0.01, 0.1, 1.0]}``.
    say
        Receives what happens, one line each.
    **choices
        Choices of ``nnUNetv2_federated_tune``: ``trials=27, workers=2, rounds=120``.

    Raises
    ------
    SettingsError
        If a trial could not be trained as chosen, or the study is of another search.
    FederationError
        If a training failed for a reason that is not its settings.
    """
    target = {"dataset": dataset, "configuration": configuration, "fold": fold}
    chosen = _choose(TuneChoices, **target, study=study, search=search, **choices)
    return tuning.tune(chosen, say=say, note=_note)


def evaluate_model(
    model: str | Path, *, say: Callable[[str], None] = say, **choices: object
) -> EvaluationResult:
    """Evaluate a trained model at every site without training, and write a report.

    Parameters
    ----------
    model
        nnU-Net's result folder of a trained model, a fold of it, or an exported zip.
    say
        Receives what happens, one line each.
    **choices
        Choices of ``nnUNetv2_federated_evaluate``: ``site_datasets=["501", "502", "503"]``.

    Raises
    ------
    FederationError
        If the model is none, names code, or does not fit a site.
    """
    return evaluating.evaluate(_choose(EvaluateChoices, model=model, **choices), say)


def release(
    dataset: int | str,
    configurations: Sequence[str],
    folds: Sequence[int | str],
    output: str | Path,
    *,
    say: Callable[[str], None] = say,
    **choices: object,
) -> Release:
    """Write trained folds as one zip or folder to hand to a hospital.

    Parameters
    ----------
    dataset
        Id or name of the dataset.
    configurations, folds
        What was trained.
    output
        Zip, or folder, to write; it must not exist.
    say
        Receives what happens, one line each.
    **choices
        Choices of ``nnUNetv2_federated_release``: ``purpose="...", monai=False``.

    Raises
    ------
    SettingsError
        If the model is not complete, or a file would hold the name of a case.
    """
    target = {
        "dataset": str(dataset),
        "configurations": list(configurations),
        "folds": list(folds),
        "output": output,
    }
    return releasing.release(_choose(ReleaseChoices, **target, **choices), say)


def verify_release(path: str | Path, key: str | Path | None = None) -> VerifiedRelease:
    """Check a release that somebody else made; nothing is unpacked or installed.

    Parameters
    ----------
    path
        Zip or folder.
    key
        The coordinator's public key, whose signature it must have; ``None`` to compare files only.

    Raises
    ------
    SettingsError
        If a file was changed, is missing or was added, or the signature is missing or another's.
    """
    return verifying.verify_release(Path(path), None if key is None else Path(key))


def _choose(record: type[C], **values: object) -> C:
    """Build the record of a command's choices, by field or as a settings file spells them."""
    fields = {spell_key(record, name): name for name in names_of(record)}
    hints = hints_of(record)
    chosen = {}
    for spelled, value in values.items():
        name = fields.get(spelled, spelled)
        takes_path = Path in parts_of(hints.get(name))
        chosen[name] = Path(value) if takes_path and isinstance(value, str) else value
    return record(**chosen)


def _note(text: str) -> None:
    sys.stderr.write(f"note: {text}\n")
