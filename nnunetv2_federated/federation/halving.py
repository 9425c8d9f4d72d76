"""Successive halving of federations: how many trials get how many rounds, and what that costs.

Hyperband (Li et al. 2018, arXiv:1603.06560): the trials of a bracket first get a share of their
rounds; the best of them go on to the next share, the rung, and few get all. Trials pause and go on
here, so that what a rung has cost is not paid again.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.settings import FederationSettings

Brackets = Literal["hyperband", "halving", "none"]


@dataclass(frozen=True)
class Bracket:
    """Trials that begin together."""

    trials: int
    """Trials that begin."""
    exponents: tuple[int, ...]
    """Rungs: shares ``reduction ** -exponent`` of a trial's rounds, the last 0 for all of them."""
    reduction: int
    """Of so many trials one goes on to the next rung."""

    def counts(self) -> tuple[int, ...]:
        """Return the number of trials at each rung; at least one reaches the last."""
        return tuple(max(1, self.trials // self.reduction**k) for k in range(len(self.exponents)))

    def cost(self, rounds: int, extra: int = 0) -> int:
        """Return the rounds that all its trials take together.

        Parameters
        ----------
        rounds
            Rounds of a whole training.
        extra
            Trials that go on to every rung beside the best.
        """
        reached = [rung(rounds, self.reduction, exponent) for exponent in self.exponents]
        before = [0, *reached[:-1]]
        counts = self.counts()
        going = [counts[0], *(min(counts[0], count + extra) for count in counts[1:])]
        return sum(n * (r - b) for n, r, b in zip(going, reached, before, strict=True))


@dataclass(frozen=True)
class Halving:
    """How the trials of a tuning share rounds."""

    brackets: Brackets
    """``hyperband`` cycles through brackets that begin at each rung, ``halving`` repeats the one
    that begins at the lowest, ``none`` trains every trial to its end."""
    reduction: int
    rungs: int
    size: int | None = None
    """Trials of a bracket of ``halving``; ``None`` for as many as leave one at the last rung."""

    def bracket(self, index: int, left: int) -> Bracket:
        """Return a bracket.

        Parameters
        ----------
        index
            Its number, from 0.
        left
            Trials that may still begin.
        """
        if self.brackets == "none":
            return Bracket(1, (0,), self.reduction)
        deepest = self.rungs - 1
        if self.brackets == "hyperband":
            lowest = deepest - index % self.rungs
            usual = math.ceil(self.rungs / (lowest + 1) * self.reduction**lowest)
        else:
            lowest = deepest
            whole: int = self.reduction**deepest
            usual = self.size or whole
        return Bracket(min(usual, left), tuple(range(lowest, -1, -1)), self.reduction)

    def brackets_of(self, trials: int, begun: Sequence[Bracket] = ()) -> list[Bracket]:
        """Return the brackets that are to come.

        Parameters
        ----------
        trials
            Trials of the tuning, in all brackets.
        begun
            Brackets that have begun.
        """
        left = trials - sum(bracket.trials for bracket in begun)
        coming: list[Bracket] = []
        while left > 0:
            coming.append(self.bracket(len(begun) + len(coming), left))
            left -= coming[-1].trials
        return coming

    def check(self, rounds: int) -> None:
        """Raise ``SettingsError`` if a training has too few rounds for its rungs."""
        if self.brackets != "none" and self.reduction ** (self.rungs - 1) > rounds:
            raise SettingsError(
                f"--rungs {self.rungs} --reduction {self.reduction}: the lowest of these rungs is "
                f"less than one of {rounds} rounds; give fewer rungs or more --rounds."
            )

    def afforded(self, bracket: Bracket, rounds: int, left: int, extra: int) -> Bracket | None:
        """Return the bracket with as many trials as a budget allows; ``None`` if it allows none.

        Parameters
        ----------
        bracket
            Bracket as it should be.
        rounds
            Rounds of a whole training.
        left
            Rounds that are left of the budget.
        extra
            As of :meth:`Bracket.cost`.
        """
        for trials in range(bracket.trials, 0, -1):
            smaller = Bracket(trials, bracket.exponents, bracket.reduction)
            if smaller.cost(rounds, extra) <= left:
                return smaller
        return None


def rung(rounds: int, reduction: int, exponent: int) -> int:
    """Return the round at which a rung is reached: a share of a trial's rounds, rounded down."""
    parts: int = reduction**exponent
    return rounds // parts


def promoted(values: Mapping[int, float], count: int, always: Collection[int] = ()) -> set[int]:
    """Return the trials that go on: the best, of equal ones the first, and those that always do.

    Parameters
    ----------
    values
        Value of each trial at a rung, by its number; the largest is the best.
    count
        How many of them go on.
    always
        Trials that go on beside these.
    """
    ranked = sorted(values, key=lambda number: (-values[number], number))
    return {*ranked[:count], *(number for number in always if number in values)}


def work_of_round(settings: FederationSettings, usual_iterations: int | None) -> int:
    """Return the optimisation steps of a round at a site.

    Parameters
    ----------
    settings
        Settings of the training.
    usual_iterations
        Iterations of the trainer's own epoch; ``None`` if that is a pass over the site's cases,
        which counts as 1.
    """
    return settings.local_epochs * (settings.iterations_per_epoch or usual_iterations or 1)


def with_equal_work(
    settings: FederationSettings, base: FederationSettings, usual_iterations: int | None
) -> FederationSettings:
    """Return settings with as many rounds as take the optimisation steps of the base.

    Parameters
    ----------
    settings
        Settings of a trial, with the rounds of the base.
    base
        Settings of the default trial.
    usual_iterations
        As of :func:`work_of_round`.

    Raises
    ------
    SettingsError
        If that is no whole number of rounds.
    """
    own, usual = (work_of_round(one, usual_iterations) for one in (settings, base))
    rounds, rest = divmod(base.rounds * usual, own)
    if rest or not rounds:
        raise SettingsError(
            f"[search]: {settings.local_epochs} local epochs of "
            f"{settings.iterations_per_epoch or usual_iterations or 'the usual'} iterations: the "
            f"{base.rounds * usual} steps that every trial has are no whole number of such rounds; "
            "give other local_epochs and iterations_per_epoch, or other --rounds."
        )
    return settings if own == usual else settings.changed(rounds=rounds)
