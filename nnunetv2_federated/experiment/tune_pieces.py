"""Pieces of trials, who trains them, and which trial is the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from nnunetv2_federated.experiment.tune_plan import TuningPlan
from nnunetv2_federated.experiment.tune_study import Trial
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.federation.tuning_budget import Cost, bytes_of_round


@dataclass(frozen=True)
class Piece:
    """What a trial is trained at a time: until a rung."""

    trial: Trial
    settings: FederationSettings
    until: int
    """Round of the trial's own to train to, counted from 1."""
    step: int
    """The rung, in rounds of the default trial."""


class Trainings(Protocol):
    """Trains the pieces of trials, and knows what they have cost."""

    workers: int
    """How many are trained at a time."""

    def train(
        self,
        pieces: Sequence[Piece],
        scored: Callable[[Piece, float], None],
        diverged: Callable[[Piece, str], None],
    ) -> None:
        """Train pieces, and tell the score of each, or why it diverged."""

    def spent(self, trials: Sequence[Trial]) -> Cost:
        """Return what trials have cost so far."""

    def rounds_done(self, trial: Trial) -> int:
        """Return the rounds that a trial has finished."""

    def discard(self, keep: set[int]) -> None:
        """Delete the weights of all trials but some."""

    def finish(self) -> None:
        """Tell whoever has to know that no trial comes any more."""


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """Return the best of the trials that reached the highest rung; the first of equal ones.

    A trial that diverged is none, whatever it had reached before. Where a study was stopped in the
    first rung of that height, some have not been trained to it yet: the rung below is compared.
    """
    scored = [trial for trial in trials if trial.scores and trial.diverged is None]
    if not scored:
        return None
    rung = _compared_rung(scored)
    there = [trial for trial in scored if rung in trial.scores]
    return max(there, key=lambda trial: (trial.scores[rung], -trial.number))


def _compared_rung(scored: Sequence[Trial]) -> int:
    """Return the highest rung to which all trials have been trained that are to be."""
    highest = max(trial.reached for trial in scored)
    if any(not trial.running for trial in scored if trial.reached == highest):
        return highest
    return min(trial.reached for trial in scored if trial.running)


def expected_cost(plan: TuningPlan, piece: Piece, rounds_done: int, spent: Cost) -> Cost:
    """Return about what it costs to train a piece.

    Parameters
    ----------
    plan
        What is tuned.
    piece
        Piece to train.
    rounds_done
        Rounds of its training that are finished.
    spent
        Cost of all so far, from which follows how long a round takes.
    """
    seconds = spent.seconds / spent.rounds if spent.rounds else 0.0
    rounds = max(0, piece.until - rounds_done)
    sent = bytes_of_round(piece.settings, plan.values, len(plan.base.site_names))
    work = rounds * plan.work(piece.settings)
    return Cost(work, rounds * sent, work * seconds)
