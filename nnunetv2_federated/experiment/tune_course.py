"""The course of a tuning: bracket by bracket, rung by rung, from wherever it was stopped.

All that is decided follows from what the study keeps. A bracket is asked for at once, and the next
one only when all its trials have ended; so a study that was killed anywhere goes on to be the one
that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from nnunetv2_federated.experiment.tune_pieces import (
    Piece,
    Trainings,
    best_trial,
    expected_cost,
)
from nnunetv2_federated.experiment.tune_plan import DEFAULT_TRIAL, TuningPlan
from nnunetv2_federated.experiment.tune_study import Study, Trial
from nnunetv2_federated.federation.halving import Bracket, promoted, rung

WORST = 0.0
"""Score of a trial that diverged before it had one: Dice has none below."""
ALL_TRIED = "no further setting was found in the space"


class Course:
    """Trains the trials of a study.

    Parameters
    ----------
    plan
        What is tuned.
    study
        Keeps the trials.
    trainings
        Trains them.
    say
        Receives what happens, one line each.
    """

    def __init__(
        self, plan: TuningPlan, study: Study, trainings: Trainings, say: Callable[[str], None]
    ) -> None:
        self._plan = plan
        self._study = study
        self._trainings = trainings
        self._say = say

    def run(self) -> str | None:
        """Go on to the end, and tell the trainings if no trial goes on any more.

        Returns
        -------
        str or None
            Why it ended before all trials had begun, or with trials that are paused; ``None`` if it
            did not.
        """
        stopped = self._brackets()
        if not any(trial.running for trial in self._study.trials()):
            self._trainings.finish()
        return stopped

    def _brackets(self) -> str | None:
        """Begin and end one bracket after another; return why not all trials could be."""
        index, begun = 0, list[Bracket]()
        while True:
            bracket = self._study.bracket(index)
            if bracket is None:
                found = self._next(index, begun)
                if not isinstance(found, Bracket):
                    return found
                bracket = found
                self._study.begin_bracket(index, bracket)
            if not self._fill(index, bracket):
                return ALL_TRIED
            tried = len(self._of(index)) < bracket.trials
            is_open = any(trial.running for trial in self._of(index))
            stopped = self._climb(index, bracket)
            if stopped is not None:
                return stopped
            self._discard()
            if is_open:
                self._say_best()
            if tried:
                return ALL_TRIED
            begun.append(bracket)
            index += 1

    def _say_best(self) -> None:
        trials = self._study.trials()
        best = best_trial(trials)
        if best is not None:
            score = f"{best.scores[best.reached]:.4f} after {best.reached} rounds"
            self._say(
                f"{len(trials)} of {self._plan.trials} trials have ended; the best is trial "
                f"{best.number}: {score} of {self._plan.rounds}"
            )

    def _discard(self) -> None:
        """Delete the weights of trials that lost; a later bracket may have begun before a kill."""
        trials = self._study.trials()
        running = (trial.number for trial in trials if trial.running)
        self._trainings.discard({DEFAULT_TRIAL, *_numbers(best_trial(trials)), *running})

    def _next(self, index: int, begun: Sequence[Bracket]) -> Bracket | str | None:
        """Return the next bracket, why there is none, or ``None`` if all trials have begun."""
        left = self._plan.trials - sum(bracket.trials for bracket in begun)
        if left <= 0:
            return None
        bracket = self._plan.halving.bracket(index, left)
        allowed = self._plan.budget.rounds
        if allowed is None:
            return bracket
        rounds, kept = self._plan.rounds, self._plan.budget.kept.rounds
        planned = sum(b.cost(rounds, _extra(i)) for i, b in enumerate(begun))
        rest = math.floor(allowed - kept - planned)
        nested = f", {kept:g} are for --nested" if kept else ""
        return (
            self._plan.halving.afforded(bracket, rounds, rest, _extra(index))
            or f"--budget-rounds {allowed}: {planned} are planned{nested}"
        )

    def _fill(self, index: int, bracket: Bracket) -> bool:
        """Add the trials of a bracket; return whether it has any."""
        missing = bracket.trials - len(self._of(index))
        for _ in range(missing):
            if not self._study.add(index):
                break
        return bool(self._of(index))

    def _climb(self, index: int, bracket: Bracket) -> str | None:
        """Train the trials of a bracket rung by rung; return why that was stopped."""
        counts = bracket.counts()
        for depth, exponent in enumerate(bracket.exponents):
            step = rung(self._plan.rounds, bracket.reduction, exponent)
            self._end_diverged(index, step)
            waiting = [t for t in self._of(index) if t.running and step not in t.scores]
            pieces = [self._piece(trial, bracket, exponent, step) for trial in waiting]
            stopped = self._train(pieces)
            if stopped is not None:
                return stopped
            self._end_diverged(index, step)
            last = depth == len(bracket.exponents) - 1
            self._decide(index, step, None if last else counts[depth + 1])
        return None

    def _piece(self, trial: Trial, bracket: Bracket, exponent: int, step: int) -> Piece:
        settings = self._plan.settings_of(trial.number, trial.values)
        return Piece(trial, settings, rung(settings.rounds, bracket.reduction, exponent), step)

    def _train(self, pieces: Sequence[Piece]) -> str | None:
        """Train what the budget allows; return the limit that left something out.

        What a round takes is known once some are trained, so hours are looked at again before as
        many pieces as are trained at a time.
        """

        def scored(piece: Piece, score: float) -> None:
            self._study.report(piece.trial.number, piece.step, score)

        def diverged(piece: Piece, reason: str) -> None:
            self._study.diverged(piece.trial.number, reason)
            self._say(f"trial {piece.trial.number}: diverged; it gets no more rounds")

        size = len(pieces) if self._plan.budget.hours is None else self._trainings.workers
        for first in range(0, len(pieces), max(1, size)):
            allowed, stopped = self._afforded(pieces[first : first + size])
            if allowed:
                self._trainings.train(allowed, scored, diverged)
            if stopped is not None:
                return stopped
        return None

    def _afforded(self, pieces: Sequence[Piece]) -> tuple[list[Piece], str | None]:
        """Return the pieces that the budget allows, and the limit that leaves the next one out."""
        if self._plan.budget.unlimited:
            return list(pieces), None
        spent = self._trainings.spent(self._study.trials())
        coming = [
            expected_cost(self._plan, piece, self._trainings.rounds_done(piece.trial), spent)
            for piece in pieces
        ]
        count, stopped = self._plan.budget.affords(spent, coming)
        return list(pieces[:count]), stopped

    def _decide(self, index: int, step: int, count: int | None) -> None:
        """End the trials that do not go on; ``None`` if this was the last rung."""
        trials = [t for t in self._of(index) if step in t.scores and t.diverged is None]
        running = [trial for trial in trials if trial.running]
        if count is None:
            for trial in running:
                self._study.complete(trial.number, trial.scores[step])
        elif running:
            scores = {trial.number: trial.scores[step] for trial in trials}
            going = promoted(scores, count, always=(DEFAULT_TRIAL,))
            self._stop_all_but(going, running)
            self._say(
                f"rung {step} of {self._plan.rounds} rounds: {len(going)} of {len(trials)} trials "
                f"go on: {', '.join(map(str, sorted(going)))}"
            )

    def _stop_all_but(self, going: set[int], trials: Sequence[Trial]) -> None:
        for trial in trials:
            if trial.number not in going:
                self._study.stop(trial.number)

    def _end_diverged(self, index: int, step: int) -> None:
        """End the trials that diverged; one without a score gets the worst, at its first rung."""
        for trial in self._of(index):
            if trial.running and trial.diverged is not None:
                if not trial.scores:
                    self._study.report(trial.number, step, WORST)
                self._study.stop(trial.number)

    def _of(self, index: int) -> list[Trial]:
        return [trial for trial in self._study.trials() if trial.bracket == index]


def _numbers(trial: Trial | None) -> set[int]:
    return set() if trial is None else {trial.number}


def _extra(index: int) -> int:
    """Return how many trials of a bracket go on beside the best: the default, of the first."""
    return 1 if index == 0 else 0
