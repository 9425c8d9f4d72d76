"""Tune the settings of a federation: draw, train, stop what is worse, report what was found."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from nnunetv2_federated.experiment.tune_choices import TuneChoices
from nnunetv2_federated.experiment.tune_plan import TuningPlan, build_plan
from nnunetv2_federated.experiment.tune_result import TuningResult
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.nnunet.process import prepare_process


def tune(
    choices: TuneChoices,
    *,
    say: Callable[[str], None],
    note: Callable[[str], None],
    say_round: Callable[[str], None] | None = None,
) -> TuningResult:
    """Train the trials of a study, or go on where that stopped; write report and settings files.

    Parameters
    ----------
    choices
        What to tune.
    say
        Receives what happens, one line each.
    note
        Receives what the user should know before training, one line each.
    say_round
        Receives a line a round of each trial; ``None`` for none.

    Raises
    ------
    SettingsError
        If a trial could not be trained as chosen, the study is of another search, or another
        process is at work on it.
    FederationError
        If a training failed for a reason that is not its settings; the same call goes on there.
    """
    if find_spec("optuna") is None:
        raise SettingsError(
            "tuning needs Optuna, which is not installed: pip install 'nnunetv2-federated[tune]'."
        )
    prepare_process()
    plan = build_plan(choices, say=note)
    for line in notes_on(plan):
        note(line)
    from nnunetv2_federated.experiment.tune_run import run_study  # noqa: PLC0415  # an extra

    return run_study(choices, plan, say, say_round or _nobody)


def notes_on(plan: TuningPlan) -> list[str]:
    """Return what the user should know of this tuning."""
    lines = []
    if plan.base.settings.private:
        lines.append(
            "differential privacy: every trial, and with --nested every training on another fold, "
            "is charged to the sites' privacy ledgers like any training, and the validation cases "
            "by which trials are chosen are not protected"
        )
    return lines


def _nobody(line: str) -> None:
    del line
