"""Train and test the models of a comparison, from where an earlier command stopped."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nnunetv2_federated.experiment.comparison import Comparison, Model
from nnunetv2_federated.experiment.comparison_folders import fold_folder, model_to_test
from nnunetv2_federated.experiment.comparison_plan import Runs, cases_to_test
from nnunetv2_federated.experiment.follow import rounds_passed_on
from nnunetv2_federated.experiment.train_process import (
    LOG_FILE,
    reason_of_failure,
    start_training,
    wait_for_training,
)
from nnunetv2_federated.federation.files import write_atomically
from nnunetv2_federated.federation.history import HISTORY_FILE, History, read_history
from nnunetv2_federated.federation.progress import Progress
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.federation.tested_case import TestedCase, write_tested_cases
from nnunetv2_federated.nnunet.data.dataset import find_trainer, load_dataset
from nnunetv2_federated.nnunet.data.folds import fold_split, known_patients
from nnunetv2_federated.nnunet.evaluation.tester import (
    images_tr,
    images_ts,
    raw_folder,
    tester_of,
)
from nnunetv2_federated.nnunet.training.optimizer import SUFFIX

STATE_FILE, TESTS_FILE = "state.json", "tests.json"
_TRAINED, _FAILED = "trained", "failed"


def run_models(
    comparison: Comparison,
    runs: Runs,
    folder: Path,
    say: Callable[[str], None],
    say_round: Callable[[str], None] | None = None,
) -> int:
    """Train and test all models that are not finished; after one that fails, go on with the next.

    Parameters
    ----------
    comparison
        Comparison that the models belong to.
    runs
        Run of each model that is trained.
    folder
        Folder of the comparison.
    say
        Receives one line for each model.
    say_round
        Receives one line for each round of each model; ``None`` for no such lines.

    Returns
    -------
    int
        How many models failed.
    """
    failed = 0
    models = comparison.models()
    device = torch.device(next(iter(runs.values())).device)
    progress = Progress(total=len(models))
    for number, model in enumerate(models, 1):
        place = folder / model.folder
        title = f"[{number}/{len(models)}] {model}"
        if (place / TESTS_FILE).is_file():
            say(f"{title}: done before")
            continue
        started = time.monotonic()
        reason = None
        if model in runs:
            with rounds_passed_on(place / LOG_FILE, say_round):
                reason = train_model(runs[model], place)
        if reason is None:
            reason = evaluate_model(comparison, model, folder, device)
        write_state(place, _TRAINED if reason is None else _FAILED, reason)
        seconds = time.monotonic() - started
        end = f"{seconds:.0f} s" if reason is None else f"failed: {reason}"
        left = progress.finished(number)
        say(f"{title}: {end}" + (f"; about {left} left" if left else ""))
        failed += reason is not None
    return failed


def write_state(place: Path, state: str, reason: str | None = None) -> None:
    """Write whether a model is trained or has failed, and why."""
    place.mkdir(parents=True, exist_ok=True)
    write_atomically(place / STATE_FILE, json.dumps({"state": state, "reason": reason}))


def read_state(place: Path) -> dict[str, Any]:
    """Return ``state`` and ``reason`` of a model; an empty mapping if it was not begun."""
    path = place / STATE_FILE
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def train_model(run: Run, place: Path) -> str | None:
    """Train a model in a process of its own, from where it stopped; return why it failed."""
    if read_state(place).get("state") == _TRAINED:
        return None
    environment = {**os.environ, "nnUNet_results": str(place)}
    status = wait_for_training(start_training(run, place, environment))
    if status != 0:
        return reason_of_failure(place, status)
    write_state(place, _TRAINED)
    return None


def evaluate_model(
    comparison: Comparison, model: Model, folder: Path, device: torch.device
) -> str | None:
    """Test a trained model on all its cases and write ``tests.json``; return why that failed.

    Parameters
    ----------
    comparison, model
        Model to test, and its comparison.
    folder
        Folder of the comparison.
    device
        Device to predict on.
    """
    dataset = load_dataset(comparison.dataset, comparison.plans_name)
    tester = tester_of(find_trainer(comparison.trainer.removesuffix(SUFFIX)))
    place = folder / model.folder
    _, validation = fold_split(dataset, comparison.configuration, model.fold)
    external = {case for cases in comparison.external.values() for case in cases}
    raw = raw_folder(dataset)
    patients = known_patients(dataset) or {}
    tested = []
    try:
        trained = model_to_test(comparison, model, folder, device)
        for subset, sites in cases_to_test(comparison, dataset, model.fold, model.seed).items():
            if not sites:
                continue
            images = images_tr(raw) if subset == "Tr" else images_ts(raw)
            records = tester.test(
                trained,
                {case: images[case] for case in sites},
                tester.references(raw, dataset.dataset_json, subset, list(sites)),
                place / "predictions",
                set(validation) - external,
            )
            tested += [
                TestedCase.of(
                    {
                        **record,
                        "site": sites[record["case"]],
                        "subset": subset,
                        "patient": patients.get(record["case"]),
                    }
                )
                for record in records
            ]
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        return " ".join(f"testing: {type(error).__name__}: {error}".split())
    write_tested_cases(place / TESTS_FILE, tested)
    return None


def read_model_history(comparison: Comparison, model: Model, folder: Path) -> History | None:
    """Return the history of a model; ``None`` before its first round is finished."""
    fold = fold_folder(comparison, model, folder)
    return read_history(fold) if (fold / HISTORY_FILE).is_file() else None
