"""A tuning that trains on paper."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_federated.experiment.tune_course import Course
from nnunetv2_federated.experiment.tune_pieces import Piece
from nnunetv2_federated.experiment.tune_plan import TuningPlan
from nnunetv2_federated.experiment.tune_storage import open_storage
from nnunetv2_federated.experiment.tune_study import Study, Trial
from nnunetv2_federated.federation.halving import Halving
from nnunetv2_federated.federation.run import Run, SiteCases
from nnunetv2_federated.federation.search_table import read_search_space
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.federation.tuning_budget import Budget, Cost

BASE = FederationSettings(rounds=12)
SPACE: dict[str, Any] = {
    "initial_lr": {"low": 1e-3, "high": 0.1, "log": True},
    "local_epochs": [1, 2, 3],
    "strategy": ["fedavg", "fedprox"],
    "fedprox.proximal_mu": {"low": 0.001, "high": 1.0, "log": True},
}


def a_plan(
    trials: int,
    halving: Halving,
    table: dict[str, Any] | None = None,
    budget: Budget = Budget(),  # noqa: B008  # frozen
) -> TuningPlan:
    run = Run(
        dataset="Dataset001_A",
        configuration="2d",
        fold=0,
        trainer="nnUNetTrainerFederated",
        plans_name="nnUNetPlans",
        device="cpu",
        settings=BASE,
        sites=(SiteCases("bern", "Dataset001_A", ("a",), ("b",)),),
    )
    space = read_search_space(SPACE if table is None else table, BASE)
    defaults: dict[str, str | float] = {"initial_lr": 0.01, "local_epochs": 1, "strategy": "fedavg"}
    return TuningPlan(
        base=run,
        space=space,
        defaults={p.name: defaults[p.name] for p in space.parameters if p.name in defaults},
        halving=halving,
        budget=budget,
        trials=trials,
        sampler="tpe",
        score_iterations=10,
        usual_iterations=250,
        values=1000,
    )


class Paper:
    """Trains on paper: a score follows from settings and round; a high rate diverges."""

    workers = 1

    def __init__(self, plan: TuningPlan) -> None:
        self.plan = plan
        self.done: dict[int, int] = {}
        self.weights: set[int] = set()
        self.finished = False

    def train(
        self,
        pieces: Sequence[Piece],
        scored: Callable[[Piece, float], None],
        diverged: Callable[[Piece, str], None],
    ) -> None:
        for piece in pieces:
            lr = piece.settings.initial_lr or 0.01
            if lr > 0.0234 - piece.step * 2e-5:
                diverged(piece, "the training diverged")
                continue
            # a trial that goes on has its weights
            assert not piece.trial.scores or piece.trial.number in self.weights
            self.weights.add(piece.trial.number)
            self.done[piece.trial.number] = piece.until
            best = 0.03 if piece.settings.strategy == "fedprox" else 0.02
            scored(piece, piece.step / 12 - 10 * abs(lr - best))

    def spent(self, trials: Sequence[Trial]) -> Cost:
        total = Cost()
        for trial in trials:
            settings = self.plan.settings_of(trial.number, trial.values)
            rounds = self.done.get(trial.number, 0)
            total += Cost(rounds * self.plan.work(settings), rounds * 8000, 3600.0 * rounds)
        return total

    def rounds_done(self, trial: Trial) -> int:
        return self.done.get(trial.number, 0)

    def discard(self, keep: set[int]) -> None:
        self.weights &= keep

    def finish(self) -> None:
        self.finished = True


def open_study(folder: Path, plan: TuningPlan) -> Study:
    return Study(open_storage(f"sqlite:///{folder / 'study.db'}"), "study", plan)


def run(study: Study, plan: TuningPlan, paper: Paper | None = None) -> str | None:
    return Course(plan, study, paper or Paper(plan), lambda _: None).run()


def content(study: Study) -> list[Trial]:
    return study.trials()


class KilledError(Exception):
    pass


def _raise() -> None:
    raise KilledError


def killed_after(writes: int, study: Study, kill: Callable[[], None] = _raise) -> None:
    """Let a study end its process at a write, before or after that reached the disk."""
    count = itertools.count()
    for name in ("create_new_trial", "set_trial_intermediate_value", "set_trial_state_values",
                 "set_study_user_attr", "set_trial_user_attr"):  # fmt: skip
        storage: Any = study.optuna._storage
        real = getattr(storage, name)

        def write(*args: Any, _real: Any = real, **kwargs: Any) -> Any:
            number = next(count)
            if number == writes and writes % 2:
                kill()
            result = _real(*args, **kwargs)
            if number == writes:
                kill()
            return result

        setattr(storage, name, write)
