"""Resolve what a user chose to a tuning, and check that every trial could be trained."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from nnunetv2_federated.experiment.choices import TrainChoices
from nnunetv2_federated.experiment.resolve import resolve
from nnunetv2_federated.experiment.tune_choices import TuneChoices
from nnunetv2_federated.experiment.tune_folds import runs_of_other_folds
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.halving import Bracket, Halving, with_equal_work, work_of_round
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.federation.search_space import (
    OneOf,
    Parameter,
    Range,
    SearchSpace,
    Value,
    Values,
)
from nnunetv2_federated.federation.search_table import read_search_space
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.federation.study import StudyTerms, problem_of_study
from nnunetv2_federated.federation.tasks import DEFAULT_PROXIMAL_MU
from nnunetv2_federated.federation.tuning_budget import Budget, Cost, bytes_of_round
from nnunetv2_federated.flower.launch import check_buildable, check_choices, notes_on_datasets
from nnunetv2_federated.nnunet.environment import environment
from nnunetv2_federated.nnunet.training.trainer import FederatedRounds
from nnunetv2_federated.nnunet.training.weights import num_values

DEFAULT_TRIAL = 0
"""Number of the trial with the default settings."""
_OF_WORK = ("local_epochs", "iterations_per_epoch")
_MOST_OF_WORK = 1000
"""Largest number of combinations of these that are looked at."""


@dataclass(frozen=True)
class TuningPlan:
    """A tuning with every choice made."""

    base: Run
    """Run of the default trial."""
    space: SearchSpace
    defaults: Values
    """Values of the default trial that are in the space."""
    halving: Halving
    budget: Budget
    trials: int
    sampler: str
    score_iterations: int
    usual_iterations: int | None
    """Iterations of the trainer's own epoch."""
    values: int
    """Values of the network that are federated."""
    nested: tuple[Run, ...] = ()
    """Runs of the default on the folds of ``--nested``."""

    @property
    def rounds(self) -> int:
        """Rounds of the default trial."""
        return self.base.settings.rounds

    @property
    def logarithms(self) -> list[str]:
        """Names of the parameters of which logarithms are drawn."""
        return [
            p.name for p in self.space.parameters if isinstance(p.values, Range) and p.values.log
        ]

    def settings_of(self, number: int, values: Values) -> FederationSettings:
        """Return the settings of a trial; the first is the default, wherever the space is."""
        return self.base.settings if number == DEFAULT_TRIAL else self.settings(values)

    def settings(self, values: Values) -> FederationSettings:
        """Return the settings of a trial, with as many rounds as take the default's steps."""
        base = self.base.settings
        return with_equal_work(self.space.apply(base, values), base, self.usual_iterations)

    def work(self, settings: FederationSettings) -> float:
        """Return the steps of a trial's round by those of the default's."""
        own, base = (
            work_of_round(one, self.usual_iterations) for one in (settings, self.base.settings)
        )
        return own / base

    @property
    def whole_training(self) -> Cost:
        """Return what the default costs, but for the time."""
        settings = self.base.settings
        sent = bytes_of_round(settings, self.values, len(self.base.site_names))
        return Cost(self.rounds, self.rounds * sent)

    def terms(self, study_id: str, begun: Sequence[Bracket] = ()) -> StudyTerms:
        """Return what sites on other machines are asked to approve.

        Parameters
        ----------
        study_id
            Identifies the study.
        begun
            Brackets that have begun, which may be smaller than those of all trials at once.
        """
        # with less work in a round than the default's, a trial has more of them
        longest = max(self.rounds, *(self.settings(values).rounds for values in _ends(self)))
        brackets = [*begun, *self.halving.brackets_of(self.trials, begun)]
        rounds = sum(bracket.cost(longest, extra=1) for bracket in brackets)
        pieces = sum(sum(bracket.counts()) + len(bracket.exponents) for bracket in brackets)
        if self.budget.rounds is not None and longest == self.rounds:
            rounds = min(rounds, self.budget.rounds)
        return StudyTerms(
            study_id=study_id,
            base=asdict(self.base.settings),
            search=self.space.to_plain(),
            trials=self.trials,
            rounds=rounds,
            reduction=self.halving.reduction,
            rungs=1 if self.halving.brackets == "none" else self.halving.rungs,
            score_iterations=self.score_iterations,
            evaluations=pieces + self.trials,
            hours=_with_margin(self.budget.hours),
            gigabytes=_with_margin(self.budget.gigabytes),
        )

    def identity(self) -> dict[str, Any]:
        """Return what may not change while a study goes on, as plain JSON."""
        run = json.loads(self.base.to_json())
        for name in ("device", "run_id"):
            del run[name]
        schedule = {**asdict(self.halving), "sampler": self.sampler}
        return {
            "run": run,
            "search": json.loads(json.dumps(self.space.to_plain())),
            "schedule": schedule,
            "score_iterations": self.score_iterations,
        }


def build_plan(choices: TuneChoices, *, say: Callable[[str], None]) -> TuningPlan:
    """Resolve every choice, and check the default trial and the ends of the space.

    Parameters
    ----------
    choices
        What to tune.
    say
        Receives what the user should know before training, one line each.

    Raises
    ------
    SettingsError
        With one line about what came, what is allowed and how to fix it.
    """
    with tempfile.TemporaryDirectory() as scratch, environment(nnUNet_results=scratch):
        base = resolve(choices.part(TrainChoices))
        _check_objective(base)
        space = read_search_space(choices.search, base.settings)
        trainer = check_buildable(base)
        for line in notes_on_datasets(base, trainer):
            say(line)
        plan = TuningPlan(
            base=base,
            space=space,
            defaults=_defaults(space, base.settings, trainer),
            halving=Halving(
                choices.brackets, choices.reduction, choices.rungs, choices.bracket_size
            ),
            budget=Budget(choices.budget_rounds, choices.budget_gb, choices.budget_hours),
            trials=choices.trials,
            sampler=choices.sampler,
            score_iterations=choices.score_iterations,
            usual_iterations=_usual_iterations(space, base, trainer),
            values=num_values(trainer.network),
            nested=runs_of_other_folds(choices, base),
        )
        plan.halving.check(plan.rounds)
        _check_trials(plan)
    whole = plan.whole_training
    kept = sum([whole] * (2 * len(plan.nested)), Cost())
    replace(plan.budget, kept=kept).check(whole, plan.rounds)
    return plan


def _with_margin(limit: float | None) -> float | None:
    """Return what a site approves of a budget, which counts rounds only, and ends no piece."""
    return None if limit is None else 1.25 * limit


def _check_objective(base: Run) -> None:
    """Refuse what leaves nothing to choose by, or costs each trial what it is not chosen by."""
    if base.fold == "all":
        raise SettingsError(
            "a tuning of fold all: trials would be chosen by the cases that they are trained on; "
            "give a fold that leaves validation cases."
        )
    if base.settings.personalises:
        raise SettingsError(
            "--personal finetune: every trial would make personal models, by which none is chosen; "
            "leave it out, and add it to the settings that are found."
        )
    if base.settings.withholds:
        raise SettingsError(
            "--dp-validation withhold: a tuning chooses by the sites' validation, which would be "
            "told to nobody; give --dp-validation clear, whose cases are then not protected."
        )
    if not base.remote_sites and not any(site.validation_cases for site in base.sites):
        raise SettingsError(
            f"fold {base.fold}: no site has a validation case to choose by; give a fold that has."
        )


def _usual_iterations(space: SearchSpace, base: Run, trainer: FederatedRounds) -> int | None:
    """Return the iterations of the trainer's own epoch; ``None`` for a pass over the cases."""
    own: int | None = trainer.num_iterations_per_epoch
    if base.remote_sites and (problem := problem_of_study(base.settings, space)) is not None:
        raise SettingsError(f"{problem}.")
    varies = any(parameter.name == "iterations_per_epoch" for parameter in space.parameters)
    if varies and own is None:
        raise SettingsError(
            f"[search] iterations_per_epoch: an epoch of {base.trainer} is a pass over a site's "
            "cases; give iterations_per_epoch outside [search], too, for the default trial."
        )
    return own


def _defaults(
    space: SearchSpace, settings: FederationSettings, trainer: FederatedRounds
) -> dict[str, Value]:
    """Return the values of the default settings, as far as they are in the space."""
    known: dict[str, Any] = {
        "initial_lr": trainer.initial_lr,
        "momentum": trainer.optimizer.param_groups[0].get("momentum"),
        "weight_decay": trainer.weight_decay,
        "iterations_per_epoch": trainer.num_iterations_per_epoch,
        "fedprox.proximal_mu": DEFAULT_PROXIMAL_MU,
    }
    found: dict[str, Value] = {}
    for parameter in space.of(settings.strategy):
        chosen = parameter.value_in(settings)
        value: Any = known.get(parameter.name) if chosen is None else chosen
        if parameter.values.has(value):
            found[parameter.name] = value
    return found


def _check_trials(plan: TuningPlan) -> None:
    """Check trials at the ends of the space, and build a network of each kind."""
    built = set()
    for values in _ends(plan):
        settings = plan.settings(values)
        plan.halving.check(settings.rounds)
        run = replace(plan.base, settings=settings)
        check_choices(run)
        kind = (settings.batchnorm, settings.lr_schedule)
        if kind not in built:
            check_buildable(run)
            built.add(kind)


def _ends(plan: TuningPlan) -> Iterator[Values]:
    """Yield trials of each strategy that have, one parameter after another, its extreme values."""
    base = plan.base.settings
    for strategy in plan.space.strategies(base):
        parameters = plan.space.of(strategy)
        first = {p.name: _extremes(p)[0] for p in parameters}
        if "strategy" in first:
            first["strategy"] = strategy
        yield first
        for parameter in parameters:
            if parameter.name not in ("strategy", *_OF_WORK):
                yield from ({**first, parameter.name: end} for end in _extremes(parameter)[1:])
        yield from _works(parameters, first)


def _works(parameters: tuple[Parameter, ...], first: Values) -> Iterator[Values]:
    """Yield a trial for each number of steps that a round may have."""
    own = [p for p in parameters if p.name in _OF_WORK]
    combinations = itertools.product(*(_all_values(p) for p in own))
    for numbers in itertools.islice(combinations, _MOST_OF_WORK):
        yield {**first, **dict(zip((p.name for p in own), numbers, strict=True))}


def _extremes(parameter: Parameter) -> tuple[Value, ...]:
    values = parameter.values
    if isinstance(values, OneOf):
        return values.values
    ends = (values.low, values.high)
    return tuple(map(int, ends)) if values.whole else ends


def _all_values(parameter: Parameter) -> tuple[Value, ...]:
    values = parameter.values
    if isinstance(values, OneOf):
        return values.values
    return tuple(range(int(values.low), int(values.high) + 1))
