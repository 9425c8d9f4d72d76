"""Folds beside the one of a tuning, by which nothing is chosen."""

from __future__ import annotations

from nnunetv2_federated.experiment.choices import TrainChoices
from nnunetv2_federated.experiment.resolve import resolve
from nnunetv2_federated.experiment.tune_choices import TuneChoices
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.federation.text import some_cases


def runs_of_other_folds(choices: TuneChoices, base: Run) -> tuple[Run, ...]:
    """Return the run of the default settings on each fold of ``--nested``.

    Parameters
    ----------
    choices
        What was chosen for the tuning.
    base
        Run of the default on the fold by which is chosen.

    Raises
    ------
    SettingsError
        If a fold does not exist, is given twice, has no validation case, or shares one with the
        fold by which is chosen; or if the sites are on other machines.
    """
    if choices.nested and base.remote_sites:
        raise SettingsError(
            "--nested with --server: other folds are trained on this machine only; leave it out."
        )
    twice = {fold for fold in choices.nested if choices.nested.count(fold) > 1}
    if twice:
        raise SettingsError(f"--nested {min(twice, key=str)}: is given twice; give each fold once.")
    return tuple(_run_of(fold, choices, base) for fold in choices.nested)


def _run_of(fold: int | str, choices: TuneChoices, base: Run) -> Run:
    if fold == base.fold:
        raise SettingsError(
            f"--nested {fold}: is the fold that settings are chosen by; give others, on which "
            "nothing is chosen."
        )
    if fold == "all":
        raise SettingsError(
            "--nested all: has no validation case that is not trained on; give numbers of folds."
        )
    try:
        run = resolve(choices.part(TrainChoices).changed(fold=fold))
    except SettingsError as error:
        raise SettingsError(f"--nested {fold}: {error}") from error
    own = _validated(run)
    if not own:
        raise SettingsError(f"--nested {fold}: no site has a validation case there.")
    shared = own & _validated(base)
    if shared:
        names = some_cases({case for _, case in shared})
        raise SettingsError(
            f"--nested {fold}: validates {names} as fold {base.fold} does, by which settings are "
            "chosen; give folds that share no validation case with it."
        )
    return run


def _validated(run: Run) -> set[tuple[str, str]]:
    return {(site.dataset, case) for site in run.sites for case in site.validation_cases}
