"""Compare local, federated and centralised models: train, test, report."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.paths import nnUNet_results

from nnunetv2_federated.experiment.choices import CompareChoices
from nnunetv2_federated.experiment.comparison import Comparison, open_comparison
from nnunetv2_federated.experiment.comparison_models import run_models
from nnunetv2_federated.experiment.comparison_plan import build_comparison
from nnunetv2_federated.experiment.comparison_report import write_report
from nnunetv2_federated.federation.files import only_one
from nnunetv2_federated.nnunet.data.dataset import check_environment
from nnunetv2_federated.nnunet.device import choose_device
from nnunetv2_federated.nnunet.process import prepare_process


@dataclass(frozen=True)
class ComparisonResult:
    """What a comparison left."""

    folder: Path
    """Folder of the comparison; the same call continues there."""
    report: Path
    """Report in one HTML file, which also shows what failed."""
    models: int
    """Models that were to be trained or tested: arms times seeds times folds."""
    failed: int
    """Models that failed; the same call tries them again."""


def compare(
    choices: CompareChoices,
    *,
    say: Callable[[str], None],
    note: Callable[[str], None],
    say_round: Callable[[str], None] | None = None,
) -> ComparisonResult:
    """Train and test every model of a comparison, or go on where that stopped; write the report.

    Parameters
    ----------
    choices
        What to compare.
    say
        Receives what happens, one line each.
    note
        Receives what the user should know before training, one line each.
    say_round
        Receives a line a round of each training; ``None`` for none.

    Raises
    ------
    SettingsError
        If a model cannot be trained or tested as chosen, or another process is at work on the
        comparison.
    """
    prepare_process()
    comparison, runs = build_comparison(choices, choose_device(choices.device), say=note)
    folder = choices.output or _default_folder(comparison)
    began = open_comparison(folder, comparison)
    os.environ.setdefault("nnUNet_results", str(folder))  # nnU-Net asks for one
    # trainings inherit the lock: one that outlives a killed command keeps a second command off
    with only_one(
        folder / ".lock",
        f"-o {folder}: this comparison is still at work, perhaps a training that outlived a killed "
        "command; wait for it or end it.",
        inherited=True,
    ):
        say(f"{'continuing' if began else 'comparing'} in {folder}")
        failed = run_models(comparison, runs, folder, say, say_round)
        report = write_report(comparison, folder)
    say(f"report: {report}")
    return ComparisonResult(folder, report, len(comparison.models()), failed)


def _default_folder(comparison: Comparison) -> Path:
    check_environment(nnUNet_results)
    folds = "_".join(map(str, comparison.folds))
    name = f"comparison_{comparison.trainer}_{comparison.configuration}_fold_{folds}"
    return Path(nnUNet_results.require()) / comparison.dataset / name
