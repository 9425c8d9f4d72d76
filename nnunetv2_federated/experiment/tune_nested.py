"""Train what a tuning found, and the default, on folds by which nothing was chosen.

Each is a training to the end, in a folder that is named after fold and trial: if another trial is
the best later, it has trainings of its own, and those of the default stay what they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from nnunetv2_federated.experiment.side_by_side import train_side_by_side
from nnunetv2_federated.experiment.tune_fold_trainings import FoldTrainings, noise_of
from nnunetv2_federated.experiment.tune_pieces import Piece, expected_cost
from nnunetv2_federated.experiment.tune_plan import DEFAULT_TRIAL, TuningPlan
from nnunetv2_federated.experiment.tune_study import Trial
from nnunetv2_federated.experiment.tune_trials import TrialTrainings, delete_weights, records_in
from nnunetv2_federated.federation.optimism import FoldScore, Optimism
from nnunetv2_federated.federation.tuning_budget import Cost
from nnunetv2_federated.report.tuning_data import ReportedNested

_PLACES = "fold_*_trial_*"


class Nested:
    """Trainings on all other folds.

    Parameters
    ----------
    plan
        What is tuned.
    trainings
        The trials on the fold by which is chosen.
    folder
        Folder of the trainings on others.
    say, say_round
        As of :class:`.TrialTrainings`.
    """

    def __init__(
        self,
        plan: TuningPlan,
        trainings: TrialTrainings,
        folder: Path,
        say: Callable[[str], None],
        say_round: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._trainings = trainings
        self._folder = folder
        self._workers = trainings.workers
        self._folds = [
            FoldTrainings(replace(plan, base=run), folder, self._workers, say, say_round)
            for run in plan.nested
        ]

    def kept(self, trials: Sequence[Trial]) -> Cost:
        """Return what of the budget is not for trials.

        That is what was spent on other folds, also for a trial that is the best no more, and two
        whole trainings for each fold that is to come; one where the default's is there.
        """
        default = trials[:1]
        missing = sum(not self._all_ended(fold, default) for fold in self._folds)
        whole = [self._plan.whole_training] * (missing + len(self._folds))
        return sum(whole, self.spent(trials))

    def spent(self, trials: Sequence[Trial]) -> Cost:
        """Return what the trainings on other folds have cost so far."""
        total = Cost()
        for place in sorted(self._folder.glob(_PLACES)):
            number = int(place.name.rpartition("_")[2])
            if number < len(trials):
                settings = self._plan.settings_of(number, trials[number].values)
                total += Cost.of(records_in(place), self._plan.work(settings))
        return total

    def train(self, trials: Sequence[Trial], best: Trial | None) -> str | None:
        """Train what is missing; return the limit that stopped it, if one did.

        Trials that are paused may still become the best: before they have ended nothing is trained.

        Raises
        ------
        FederationError
            If a training failed for another reason than its settings.
        """
        compared = self._compared(trials, best)
        for fold in self._folds:
            for trial in compared:
                fold.check(trial)
        missing = [(f, t) for f in self._folds for t in compared if not f.ended(t)]
        size = len(missing) if self._plan.budget.hours is None else self._workers
        try:
            for first in range(0, len(missing), max(1, size)):
                stopped = self._train_afforded(missing[first : first + size], trials)
                if stopped is not None:
                    return stopped
        finally:
            self._tidy(trials)
        return None

    def reported(self, trials: Sequence[Trial], best: Trial | None) -> ReportedNested | None:
        """Return what the report shows of it; ``None`` if no other fold is asked for."""
        if not self._folds:
            return None
        compared = self._compared(trials, best)
        spent = self.spent(trials)
        reasons = ((fold, t, fold.reason(t.number)) for fold in self._folds for t in compared)
        return ReportedNested(
            folds=tuple(fold.fold for fold in self._folds),
            optimism=self._optimism(compared),
            default_alone=best is not None and best.number == DEFAULT_TRIAL,
            diverged=tuple(f"{f.title(t.number)}: {why}" for f, t, why in reasons if why),
            rounds=spent.rounds,
            megabytes=spent.bytes / 1e6,
            seconds=spent.seconds,
        )

    def _compared(self, trials: Sequence[Trial], best: Trial | None) -> list[Trial]:
        """Return the default and the best, which may be it; nothing before all trials have ended.

        The best is the last. A default that diverged was not trained to the end, and is left out.
        """
        rounds = self._plan.rounds
        ended = not any(trial.running for trial in trials)
        if best is None or not ended or rounds not in best.scores:
            return []
        default = trials[DEFAULT_TRIAL]
        alone = best.number == DEFAULT_TRIAL or rounds not in default.scores
        return [best] if alone else [default, best]

    def _train_afforded(
        self, missing: Sequence[tuple[FoldTrainings, Trial]], trials: Sequence[Trial]
    ) -> str | None:
        spent = self._trainings.spent(trials) + self.spent(trials)
        coming = [
            expected_cost(self._plan, fold.piece(trial), fold.rounds_done(trial), spent)
            for fold, trial in missing
        ]
        count, stopped = replace(self._plan.budget, kept=Cost()).affords(spent, coming)
        jobs = [
            job
            for fold, trial in missing[:count]
            for job in fold.jobs([fold.piece(trial)], _untold, fold.diverged)
        ]
        train_side_by_side(jobs, self._workers, self._folder, again="")
        return None if stopped is None else f"--nested: {stopped}"

    def _tidy(self, trials: Sequence[Trial]) -> None:
        """Delete the weights of trainings that have ended; others may go on, even for another."""
        for fold in self._folds:
            for trial in trials:
                if fold.ended(trial):
                    delete_weights(fold.place(trial.number))

    def _optimism(self, compared: Sequence[Trial]) -> Optimism | None:
        if not compared:
            return None
        default, best = compared[0], compared[-1]
        alone = len(compared) == 1 and best.number != DEFAULT_TRIAL
        rounds = self._plan.rounds
        ours, theirs = (self._trainings.score(t.number, self._rounds(t)) for t in (best, default))
        chosen = FoldScore(
            self._plan.base.fold,
            best.scores[rounds],
            math.nan if alone else default.scores[rounds],
            noise_of(ours, theirs),
        )
        others = tuple(
            FoldScore(
                fold.fold,
                fold.outcome(best),
                math.nan if alone else fold.outcome(default),
                fold.noise(best, default),
            )
            for fold in self._folds
            if self._all_ended(fold, compared)
        )
        return Optimism(chosen, others) if others else None

    def _rounds(self, trial: Trial) -> int:
        return self._plan.settings_of(trial.number, trial.values).rounds

    @staticmethod
    def _all_ended(fold: FoldTrainings, trials: Sequence[Trial]) -> bool:
        return bool(trials) and all(fold.ended(trial) for trial in trials)


def _untold(piece: Piece, score: float) -> None:
    """Do nothing about a score: it is in its file."""
    del piece, score
