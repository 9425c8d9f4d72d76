"""A study of Optuna: it draws and keeps trials; :mod:`.tune_course` says when they are trained."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import cast

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from nnunetv2_federated.experiment.tune_plan import TuningPlan
from nnunetv2_federated.federation.halving import Bracket
from nnunetv2_federated.federation.search_space import OneOf, Parameter, Value, Values
from nnunetv2_federated.federation.settings import Strategy
from nnunetv2_federated.federation.text import clean

FEWEST_FOR_IMPORTANCES = 8
"""Trials at a rung, below which nothing is said of what matters."""
_DRAWS = 20
"""Draws after which no new setting is expected."""
_DIGITS = 4
"""Significant digits of a drawn number: no more matter, and people read it."""
_BRACKET, _DIVERGED = "bracket", "diverged"
_STATES = {
    TrialState.RUNNING: "running",
    TrialState.PRUNED: "stopped",
    TrialState.COMPLETE: "complete",
}


@dataclass(frozen=True)
class Trial:
    """A trial as the study has it."""

    number: int
    bracket: int
    values: Values
    """Values of its parameters; of the default trial those that are in the space."""
    scores: Mapping[int, float]
    """Score at each rung that it reached, by the rung's rounds of the default trial."""
    state: str
    """``running`` (or paused), ``stopped`` at a rung, or ``complete``."""
    diverged: str | None
    """Why its training could not go on, if that was so."""

    @property
    def running(self) -> bool:
        """Whether it may still get rounds."""
        return self.state == "running"

    @property
    def reached(self) -> int:
        """The highest rung that it reached; 0 for none."""
        return max(self.scores, default=0)


class Study:
    """The trials of a tuning; only one process at a time may have it.

    Parameters
    ----------
    storage
        Database of :func:`.open_storage`.
    name
        Name of the study in it.
    plan
        What is tuned.
    """

    def __init__(self, storage: optuna.storages.BaseStorage, name: str, plan: TuningPlan) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # options are drawn one by one
        self._plan = plan
        self._storage = storage
        self.optuna = optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(),  # draws nothing: see _draw
            pruner=optuna.pruners.NopPruner(),
        )

    def trials(self) -> list[Trial]:
        """Return all trials, by number."""
        return [_read(found) for found in self.optuna.get_trials(deepcopy=False)]

    def bracket(self, index: int) -> Bracket | None:
        """Return a bracket that was begun; ``None`` if it was not."""
        content = self.optuna.user_attrs.get(f"{_BRACKET} {index}")
        if content is None:
            return None
        return Bracket(content["trials"], tuple(content["exponents"]), content["reduction"])

    def brackets(self) -> list[Bracket]:
        """Return the brackets that were begun."""
        found: list[Bracket] = []
        while (bracket := self.bracket(len(found))) is not None:
            found.append(bracket)
        return found

    def begin_bracket(self, index: int, bracket: Bracket) -> None:
        """Keep what a bracket is, before its first trial."""
        self.optuna.set_user_attr(f"{_BRACKET} {index}", asdict(bracket))

    def add(self, bracket: int) -> bool:
        """Add the next trial, at once with all its values; return whether a new one was found."""
        trials = self.trials()
        if not trials:
            self._add(bracket, self._plan.defaults)
            return True
        known = [trial.values for trial in trials]
        for draw in range(_DRAWS):
            values = self._draw(len(trials), draw)
            if values not in known:
                self._add(bracket, values)
                return True
        return False

    def report(self, number: int, step: int, score: float) -> None:
        """Keep the score of a trial at a rung."""
        self._storage.set_trial_intermediate_value(self._id(number), step, score)

    def diverged(self, number: int, reason: str) -> None:
        """Keep that a trial diverged, and why."""
        self._storage.set_trial_user_attr(self._id(number), _DIVERGED, clean(reason, 300))

    def stop(self, number: int) -> None:
        """Keep that a trial gets no more rounds."""
        self.optuna.tell(number, state=TrialState.PRUNED)

    def complete(self, number: int, score: float) -> None:
        """Keep that a trial was trained to its end."""
        self.optuna.tell(number, score)

    def importances(self) -> dict[str, float]:
        """Return how much each parameter matters, at the rung that most trials reached.

        Returns
        -------
        dict
            Shares that sum to 1; empty with too few trials to tell.
        """
        trials = self.trials()
        steps = [step for trial in trials for step in trial.scores]
        if not steps:
            return {}
        rung = max(sorted(set(steps)), key=steps.count)
        if steps.count(rung) < FEWEST_FOR_IMPORTANCES:
            return {}
        copy = optuna.create_study(direction="maximize")
        for found, trial in zip(self.optuna.get_trials(deepcopy=False), trials, strict=True):
            if rung in trial.scores and self._is_whole(found):
                copy.add_trial(
                    create_trial(
                        value=trial.scores[rung],
                        params=dict(found.params),
                        distributions=dict(found.distributions),
                    )
                )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return optuna.importance.get_param_importances(copy)
            except (ValueError, RuntimeError):  # too few trials, or all alike
                return {}

    def _id(self, number: int) -> int:
        trial_id: int = self._storage.get_trial_id_from_study_id_trial_number(
            self._storage.get_study_id_from_name(self.optuna.study_name), number
        )
        return trial_id

    def _add(self, bracket: int, values: Values) -> None:
        parameters = {p.name: p for p in self._plan.space.parameters if p.name in values}
        self.optuna.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=dict(values),
                distributions={name: _distribution(p) for name, p in parameters.items()},
                user_attrs={_BRACKET: bracket},
            )
        )

    def _draw(self, number: int, draw: int) -> dict[str, Value]:
        """Draw the values of a trial: they follow from seed, number and the trials before alone.

        A sampler that lived on would draw otherwise after a kill, so each draw has its own, over a
        copy of the trials.
        """
        seeds = np.random.SeedSequence([self._plan.base.settings.seed, number, draw])
        copy = optuna.create_study(
            direction="maximize", sampler=self._sampler(int(seeds.generate_state(1)[0]))
        )
        copy.add_trials([t for t in self.optuna.get_trials(deepcopy=False) if self._is_whole(t)])
        trial = copy.ask()
        values: dict[str, Value] = {}
        strategy = self._plan.base.settings.strategy
        # options are drawn once the strategy is known
        for parameter in sorted(self._plan.space.parameters, key=lambda p: p.name != "strategy"):
            if parameter.strategy not in (None, strategy):
                continue
            values[parameter.name] = _suggest(trial, parameter)
            if parameter.name == "strategy":
                strategy = cast("Strategy", values["strategy"])
        return values

    def _is_whole(self, trial: FrozenTrial) -> bool:
        """Whether a trial has all its values: the default may be outside of the space.

        Optuna looks at parameters together only if every trial has them.
        """
        strategy = trial.params.get("strategy", self._plan.base.settings.strategy)
        return all(p.name in trial.params for p in self._plan.space.of(strategy))

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        if self._plan.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed)


def _read(found: FrozenTrial) -> Trial:
    return Trial(
        number=found.number,
        bracket=int(found.user_attrs[_BRACKET]),
        values=found.params,
        scores=found.intermediate_values,
        state=_STATES[found.state],
        diverged=found.user_attrs.get(_DIVERGED),
    )


def _distribution(parameter: Parameter) -> BaseDistribution:
    values = parameter.values
    if isinstance(values, OneOf):
        return CategoricalDistribution(values.values)
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


def _suggest(trial: optuna.Trial, parameter: Parameter) -> Value:
    name, values = parameter.name, parameter.values
    if isinstance(values, OneOf):
        return cast("Value", trial.suggest_categorical(name, values.values))
    if values.whole:
        return trial.suggest_int(name, int(values.low), int(values.high), log=values.log)
    drawn = trial.suggest_float(name, values.low, values.high, log=values.log)
    return min(values.high, max(values.low, float(f"{drawn:.{_DIGITS}g}")))
