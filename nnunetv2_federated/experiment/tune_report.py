"""Gather what the report of a tuning shows."""

from __future__ import annotations

import math

from nnunetv2_federated.experiment.tune_plan import DEFAULT_TRIAL, TuningPlan
from nnunetv2_federated.experiment.tune_study import Study, Trial
from nnunetv2_federated.experiment.tune_trials import TrialTrainings
from nnunetv2_federated.federation.halving import rung
from nnunetv2_federated.federation.objective import noise_of_difference
from nnunetv2_federated.report.tuning_data import ReportedBest, ReportedTrial, TuningData


def gather(
    plan: TuningPlan,
    study: Study,
    trainings: TrialTrainings,
    best: Trial | None,
    stopped: str | None,
) -> TuningData:
    """Return what a study has come to.

    Parameters
    ----------
    plan
        What is tuned.
    study, trainings
        Its trials, and what they left on disk.
    best
        The best trial, if there is one.
    stopped
        Why it stopped early, if it did.
    """
    trials = study.trials()
    budget = plan.budget
    limits = {
        "--budget-rounds": budget.rounds,
        "--budget-gb": budget.gigabytes,
        "--budget-hours": budget.hours,
    }
    found = None if best is None else plan.settings_of(best.number, best.values)
    return TuningData(
        title=f"{plan.base.dataset}, {plan.base.configuration}, fold {plan.base.fold}",
        rounds=plan.rounds,
        trials=[_reported(trial, trainings) for trial in trials],
        best=None if best is None else _beside_default(plan, trials, trainings, best),
        best_settings={} if found is None else found.given(),
        importances=study.importances(),
        limits={flag: float(limit) for flag, limit in limits.items() if limit is not None},
        stopped=stopped,
        settings=plan.identity()["schedule"]
        | {"search": plan.space.to_plain(), "score_iterations": plan.score_iterations}
        | plan.base.settings.given(),
    )


def _reported(trial: Trial, trainings: TrialTrainings) -> ReportedTrial:
    cost = trainings.cost(trial)
    return ReportedTrial(
        number=trial.number,
        bracket=trial.bracket,
        values=trial.values,
        scores=trial.scores,
        state=trial.state,
        diverged=trial.diverged,
        rounds=cost.rounds,
        megabytes=cost.bytes / 1e6,
        seconds=cost.seconds,
    )


def _beside_default(
    plan: TuningPlan, trials: list[Trial], trainings: TrialTrainings, best: Trial
) -> ReportedBest | None:
    default = trials[DEFAULT_TRIAL]
    common = sorted(set(best.scores) & set(default.scores))
    if not common:
        return None
    step = common[-1]
    ours, theirs = (trainings.score(t.number, _own_round(plan, t, step)) for t in (best, default))
    return ReportedBest(
        number=best.number,
        rung=step,
        score=best.scores[step],
        default=default.scores[step],
        difference=best.scores[step] - default.scores[step],
        noise=math.nan if ours is None or theirs is None else noise_of_difference(ours, theirs),
    )


def _own_round(plan: TuningPlan, trial: Trial, step: int) -> int:
    """Return the round of a trial's own at which it reached a rung."""
    rounds = plan.settings_of(trial.number, trial.values).rounds
    reduction = plan.halving.reduction
    exponents = range(plan.halving.rungs)
    exponent = next(e for e in exponents if rung(plan.rounds, reduction, e) == step)
    return rung(rounds, reduction, exponent)
