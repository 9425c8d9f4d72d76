"""Tasks that follow from the settings a site approved; the site does nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.federation.messages import VALIDATION_EPOCH, TrainTask
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.federation.settings import FederationSettings

SHARE_TO_TRAIN = 0.8
"""Share of a round's deadline; the rest is for the weights' way down and up."""

DEFAULT_PROXIMAL_MU = 0.01
"""Weight of FedProx's term; Flower's own default of 0 would make it equal to FedAvg."""

_SAME = 1e-9
"""Relative difference of two numbers that are the same but for the machine."""
_NOTHING = 1e-12
"""Difference of two rates that is rounding where a cosine comes close to 0."""


def proximal_mu(settings: FederationSettings) -> float:
    """Return the weight of FedProx's proximal term; 0 for every other strategy."""
    if settings.strategy != "fedprox":
        return 0.0
    return float(settings.strategy_options.get("proximal_mu", DEFAULT_PROXIMAL_MU))


def seconds_to_train(settings: FederationSettings) -> float | None:
    """Return the seconds that a site may train in a round; ``None`` without a deadline."""
    deadline = settings.round_deadline
    return None if deadline is None else deadline * SHARE_TO_TRAIN


def check_round(
    task: TrainTask,
    settings: FederationSettings,
    lrs: Sequence[float],
    val_iterations: int | None,
) -> None:
    """Compare a round's task with what the approved settings say of that round.

    Only the share of the validation depends on who else takes part; it is bounded.

    Parameters
    ----------
    task
        Task as it came.
    settings
        Settings as they were approved.
    lrs
        Learning rate of each round, by the settings and the site's own trainer.
    val_iterations
        Validation iterations of an epoch of the site's trainer; ``None`` if it goes through all its
        cases.

    Raises
    ------
    SiteError
        Naming the first field that differs, what came and what was approved.
    """
    if not task.server_round < settings.rounds:
        raise SiteError(
            f"refused round {task.server_round + 1}: approved are {settings.rounds} rounds"
        )
    approved = {
        "lr": lrs[task.server_round],
        "local_epochs": settings.local_epochs,
        "proximal_mu": proximal_mu(settings),
        "seconds": seconds_to_train(settings),
    }
    for name, expected in approved.items():
        _check(name, getattr(task, name), expected)
    _check_validation(task, settings, val_iterations, first=task.server_round == 0)


def check_evaluation(
    task: TrainTask, settings: FederationSettings, val_iterations: int | None
) -> None:
    """Allow the one evaluation that the settings know: of the last round's model.

    Raises
    ------
    SiteError
        If it is another, or longer than an epoch's validation.
    """
    _check("server_round", task.server_round, settings.rounds)
    _check_validation(task, settings, val_iterations, first=False)


def check_full_validation(task: TrainTask, settings: FederationSettings) -> None:
    """Allow the full validation of the final model; its task is numbered after the evaluation.

    Raises
    ------
    SiteError
        If it has another number, or the settings withhold what a validation tells.
    """
    if settings.withholds:
        raise SiteError("refused the full validation: approved is none (--dp-validation withhold)")
    _check("server_round", task.server_round, settings.rounds + 1)


def check_personal(task: TrainTask, settings: FederationSettings, rounds_done: int) -> None:
    """Allow the personal model; its task is numbered after the full validation.

    Parameters
    ----------
    task, settings
        Task as it came, settings as they were approved.
    rounds_done
        Rounds of the run that the site has trained.

    Raises
    ------
    SiteError
        If it has another number, the settings have no personal models, or the site has trained no
        round.
    """
    if not settings.personalises:
        raise SiteError("refused a personal model: approved is none (--personal off)")
    _check("server_round", task.server_round, settings.rounds + 2)
    if rounds_done == 0:
        raise SiteError("refused a personal model: this site has trained no round of it")


def check_score(task: TrainTask, run: Run, val_iterations: int | None) -> None:
    """Allow the score of a trial of a study after each of its rungs, on as much as was approved.

    Parameters
    ----------
    task
        Task as it came; it is numbered as many rounds as the trial has been trained.
    run
        Run of the trial at the site, which need not have been drawn for any of these rounds.
    val_iterations
        As of :func:`check_round`.

    Raises
    ------
    SiteError
        If the run is no trial, there is no such rung, more is asked than approved, or the site has
        no cases to validate that it does not train on.
    """
    if run.study is None:
        raise SiteError("refused a score: the training is no trial of a study")
    rungs = run.study.scored_after(run.settings)
    if task.server_round not in rungs:
        raise SiteError(
            f"refused a score after round {task.server_round}: approved are scores after rounds "
            f"{', '.join(map(str, sorted(rungs)))}"
        )
    cases = run.sites[0]
    if run.settings.withholds or not set(cases.validation_cases) - set(cases.training_cases):
        raise SiteError("refused a score: there are no validation cases of which to tell")
    asked, most = task.validate_received, run.study.score_iterations
    whole_epoch = asked == VALIDATION_EPOCH and val_iterations is None
    if not whole_epoch and not 0 < asked <= most:
        raise SiteError(f"refused {asked} validation iterations: approved are at most {most}")


def _check(name: str, came: float | None, expected: float | None) -> None:
    same = came == expected or (
        came is not None
        and expected is not None
        and math.isclose(came, expected, rel_tol=_SAME, abs_tol=_NOTHING)
    )
    if not same:
        raise SiteError(f"refused {name} {came}: approved is {expected}")


def _check_validation(
    task: TrainTask, settings: FederationSettings, val_iterations: int | None, *, first: bool
) -> None:
    asked = task.validate_received
    if asked == 0:
        return
    if first or not settings.validates_received:
        raise SiteError(f"refused {asked} validation iterations: approved are none in this round")
    whole_epoch = asked == VALIDATION_EPOCH
    if val_iterations is None and not whole_epoch:
        raise SiteError(f"refused {asked} validation iterations: approved is one epoch's own")
    if val_iterations is not None and not whole_epoch and asked > val_iterations:
        raise SiteError(
            f"refused {asked} validation iterations: approved are at most {val_iterations}"
        )
