"""Run the study of a tuning, and write what it has come to. Imports Optuna, which is an extra."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from optuna.storages import BaseStorage

from nnunetv2_federated.experiment.resolve import server_settings
from nnunetv2_federated.experiment.tune_choices import TuneChoices
from nnunetv2_federated.experiment.tune_course import Course
from nnunetv2_federated.experiment.tune_export import (
    check_export,
    comparison_toml,
    training_toml,
    write_toml,
)
from nnunetv2_federated.experiment.tune_folder import open_study_folder
from nnunetv2_federated.experiment.tune_nested import Nested
from nnunetv2_federated.experiment.tune_network import NetworkTrials, sites_of_study
from nnunetv2_federated.experiment.tune_pieces import best_trial
from nnunetv2_federated.experiment.tune_plan import TuningPlan
from nnunetv2_federated.experiment.tune_report import gather
from nnunetv2_federated.experiment.tune_result import TuningResult
from nnunetv2_federated.experiment.tune_storage import STORAGE, in_use, open_storage, opening
from nnunetv2_federated.experiment.tune_study import Study
from nnunetv2_federated.experiment.tune_trials import TrialTrainings
from nnunetv2_federated.federation.errors import FederationError, SettingsError
from nnunetv2_federated.report.tuning import verdict, write_tuning_report


def run_study(
    choices: TuneChoices,
    plan: TuningPlan,
    say: Callable[[str], None],
    say_round: Callable[[str], None],
) -> TuningResult:
    """Begin a study, or go on with it, to its end.

    Parameters
    ----------
    choices
        What was chosen.
    plan
        What is tuned.
    say
        Receives what happens, one line each.
    say_round
        Receives a line a round of each trial.

    Raises
    ------
    FederationError
        As :func:`.tune` does.
    """
    folder = choices.study.absolute()
    check_export(choices)
    # before the folder is made: a database that cannot be opened leaves nothing
    storage = None if choices.storage is None else open_storage(choices.storage)
    with (
        open_study_folder(folder, plan) as (name, began),
        in_use(_database(choices)),
        contextlib.ExitStack() as opened,
    ):
        study = _open_study(choices, plan, storage, name)
        trainings = opened.enter_context(_trainings(choices, plan, study, say, say_round))
        _check_of_this_folder(study, trainings, folder)
        nested = Nested(plan, trainings, folder / "nested", say, say_round)
        work = _Work(plan, study, trainings, nested)
        say(f"{'continuing' if began else 'tuning'} in {folder}")
        try:
            stopped = work.train(say)
        except FederationError as error:  # the report shows the trials before
            _write(choices, work, str(error))
            raise
        result = _write(choices, work, stopped)
    if stopped is not None:
        say(f"stopped: {stopped}")
    say(result.verdict)
    return result


@dataclass(frozen=True)
class _Work:
    """A study, and who trains its trials."""

    plan: TuningPlan
    study: Study
    trainings: TrialTrainings
    nested: Nested

    def train(self, say: Callable[[str], None]) -> str | None:
        """Train all trials, and what was found on other folds; return what stopped either."""
        kept = self.nested.kept(self.study.trials())
        plan = replace(self.plan, budget=replace(self.plan.budget, kept=kept))
        stopped = Course(plan, self.study, self.trainings, say).run()
        trials = self.study.trials()
        nested = self.nested.train(trials, best_trial(trials))
        return "; ".join(reason for reason in (stopped, nested) if reason is not None) or None


def _database(choices: TuneChoices) -> str:
    """Return what the study's database is called in messages."""
    return str(_own_database(choices)) if choices.storage is None else STORAGE


def _own_database(choices: TuneChoices) -> Path:
    return choices.study.absolute() / "study.db"


def _open_study(
    choices: TuneChoices, plan: TuningPlan, storage: BaseStorage | None, name: str
) -> Study:
    """Open the study in a database that is open, or else in the folder's own."""
    database = _database(choices)
    with opening(database):
        own = f"sqlite:///{_own_database(choices)}"
        return Study(storage or open_storage(own, database), name, plan)


def _check_of_this_folder(study: Study, trainings: TrialTrainings, folder: Path) -> None:
    """Refuse a database that has nothing of a study whose trials have begun."""
    if not study.trials() and trainings.begun():
        raise SettingsError(
            f"--storage: this database has no trial of the study in {folder}, which has begun; "
            "give the one it was begun with."
        )


@contextlib.contextmanager
def _trainings(
    choices: TuneChoices,
    plan: TuningPlan,
    study: Study,
    say: Callable[[str], None],
    say_round: Callable[[str], None],
) -> Iterator[TrialTrainings]:
    """Open what trains the trials: processes here, or sites on other machines."""
    folder = choices.study.absolute()
    if choices.server is None:
        yield TrialTrainings(plan, folder / "trials", choices.workers, say, say_round)
        return
    server = server_settings(choices)
    terms = plan.terms(study.optuna.study_name.split()[-1], study.brackets())
    with sites_of_study(plan, folder, server, say) as grid:
        yield NetworkTrials(
            *(plan, folder / "trials", say, say_round), terms=terms, server=server, grid=grid
        )


def _write(choices: TuneChoices, work: _Work, stopped: str | None) -> TuningResult:
    folder, plan = choices.study.absolute(), work.plan
    trials = work.study.trials()
    best = best_trial(trials)
    nested = work.nested.reported(trials, best)
    data = replace(gather(plan, work.study, work.trainings, best, stopped), nested=nested)
    report = write_tuning_report(data, folder, plan.logarithms)
    line = verdict(data)
    if best is None:
        return TuningResult(folder, report, None, None, None, line, stopped)
    found = plan.settings_of(best.number, best.values)
    export = choices.export or folder / "best.toml"
    write_toml(export, training_toml(choices, found, f"Found by tuning: {line}."))
    comparison = None
    if best.number and choices.site_datasets is None and choices.server is None:
        comparison = folder / "comparison.toml"
        write_toml(comparison, comparison_toml(choices, plan, found, _advice(plan, line)))
    else:  # of a trial that was the best before
        (folder / "comparison.toml").unlink(missing_ok=True)
    optimism = None if nested is None else nested.optimism
    return TuningResult(folder, report, found, export, comparison, line, stopped, optimism)


def _advice(plan: TuningPlan, line: str) -> str:
    base = plan.base
    return (
        f"Tuned against default: {line}.\n"
        f"nnUNetv2_federated_compare {base.dataset} {base.configuration} {base.fold} --settings "
        "comparison.toml\n"
        f"The setting was chosen on the validation cases of fold {base.fold}: test on others, with "
        "--test-set, another fold or an external site."
    )
