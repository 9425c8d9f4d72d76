"""What was found is trained on other folds once, whoever is killed, and within the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from tuning_on_paper import KilledError, a_plan

from nnunetv2_federated.experiment import tune_folds
from nnunetv2_federated.experiment.side_by_side import Job
from nnunetv2_federated.experiment.tune_choices import TuneChoices
from nnunetv2_federated.experiment.tune_folds import runs_of_other_folds
from nnunetv2_federated.experiment.tune_nested import Nested
from nnunetv2_federated.experiment.tune_plan import TuningPlan
from nnunetv2_federated.experiment.tune_study import Trial
from nnunetv2_federated.experiment.tune_trials import TrialTrainings
from nnunetv2_federated.federation.errors import DIVERGED, SettingsError
from nnunetv2_federated.federation.halving import Halving
from nnunetv2_federated.federation.objective import Block, Score, score_file, write_score
from nnunetv2_federated.federation.run import RUN_FILE, Run, SiteCases
from nnunetv2_federated.federation.tuning_budget import Budget, Cost

TRIALS = [
    Trial(0, 0, {"momentum": 0.99}, {4: 0.5, 12: 0.7}, "complete", None),
    Trial(1, 0, {"momentum": 0.75}, {4: 0.5, 12: 0.8}, "complete", None),
    Trial(2, 0, {"momentum": 0.5}, {4: 0.4}, "stopped", None),
]
LATER = Trial(3, 1, {"momentum": 0.875}, {4: 0.6, 12: 0.9}, "complete", None)
VALUES = {0: 0.5, 1: 0.625, 3: 0.75}
"""Dice of each trial's settings on other folds; exact in binary."""


def of_fold(run: Run, fold: int | str, case: str) -> Run:
    (site,) = run.sites
    return replace(run, fold=fold, sites=(replace(site, validation_cases=(case,)),))


def plan_of(folds: Sequence[int] = (1, 2), budget: Budget = Budget()) -> TuningPlan:  # noqa: B008
    momentum: dict[str, Any] = {"momentum": {"low": 0.5, "high": 0.99}}
    plan = a_plan(3, Halving("halving", 3, 2, size=3), momentum, budget)
    runs = tuple(of_fold(plan.base, fold, f"case {fold}") for fold in folds)
    return replace(plan, nested=runs)


def number_of(job: Job) -> int:
    return int(job.name.rpartition("_")[2])


def keep_score(place: Path, rounds: int, dice: float) -> None:
    """Write a score of two blocks, each of that Dice."""
    place.mkdir(parents=True, exist_ok=True)
    block = Block((dice,), (1 - dice,), (1 - dice,))
    write_score(score_file(place, rounds), Score((block, block)))


@dataclass
class Trained:
    """Trains jobs on paper, and may be killed before one."""

    killed_at: int | None = None
    diverging: tuple[str, ...] = ()
    jobs: list[str] = field(default_factory=list)

    def __call__(self, jobs: Sequence[Job], workers: int, folder: Path, *, again: str) -> None:
        del workers, again
        for job in jobs:
            if self.killed_at == len(self.jobs):
                raise KilledError
            self.jobs.append(job.name)
            place = folder / job.name
            place.mkdir(parents=True, exist_ok=True)
            (place / RUN_FILE).write_text(job.run.to_json())
            (place / "checkpoint_latest.pth").touch()
            if job.name in self.diverging:
                assert job.excuses(f"site bern: {DIVERGED}")
                continue
            keep_score(place, job.run.settings.rounds, VALUES[number_of(job)])
            job.ended()


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    trained = Trained()
    monkeypatch.setattr("nnunetv2_federated.experiment.tune_nested.train_side_by_side", trained)
    return trained


def nested_in(folder: Path, plan: TuningPlan) -> Nested:
    trainings = TrialTrainings(plan, folder / "trials", 2, lambda _: None, lambda _: None)
    for trial in (*TRIALS, LATER):
        for rounds, score in trial.scores.items():
            keep_score(trainings.place(trial.number), rounds, score)
    return Nested(plan, trainings, folder / "nested", lambda _: None, lambda _: None)


ALL = ["fold_1_trial_000", "fold_1_trial_001", "fold_2_trial_000", "fold_2_trial_001"]


def test_killed_before_any_training_it_goes_on_and_trains_none_twice(
    tmp_path: Path, trained: Trained
) -> None:
    plan = plan_of()
    for killed_at in range(4):
        trained.killed_at = killed_at
        with pytest.raises(KilledError):
            nested_in(tmp_path, plan).train(TRIALS, TRIALS[1])
    trained.killed_at = None
    nested = nested_in(tmp_path, plan)
    assert nested.train(TRIALS, TRIALS[1]) is None
    assert trained.jobs == ALL
    assert not list(tmp_path.rglob("*.pth"))  # their scores are what they are for
    found = nested.reported(TRIALS, TRIALS[1])
    assert found is not None
    assert found.folds == (1, 2)
    assert not found.default_alone
    optimism = found.optimism
    assert optimism is not None
    assert (optimism.chosen.found, optimism.chosen.default) == (0.8, 0.7)
    assert [(o.fold, o.found, o.default) for o in optimism.others] == [
        (1, 0.625, 0.5),
        (2, 0.625, 0.5),
    ]
    assert optimism.elsewhere.noise == 0.0  # all blocks are alike
    assert optimism.found == pytest.approx(0.175)
    assert optimism.default == pytest.approx(0.2)


def test_another_best_has_trainings_of_its_own(tmp_path: Path, trained: Trained) -> None:
    nested = nested_in(tmp_path, plan_of())
    nested.train(TRIALS, TRIALS[1])
    more = [*TRIALS, LATER]
    before = nested.reported(more, LATER)
    assert before is not None
    assert before.optimism is None  # not that of the trial before
    nested.train(more, LATER)
    assert trained.jobs == [*ALL, "fold_1_trial_003", "fold_2_trial_003"]
    after = nested.reported(more, LATER)
    assert after is not None
    assert after.optimism is not None
    assert after.optimism.elsewhere.found == 0.75


def test_nothing_is_trained_while_a_trial_is_paused(tmp_path: Path, trained: Trained) -> None:
    paused = [*TRIALS[:2], replace(TRIALS[2], state="running")]
    assert nested_in(tmp_path, plan_of()).train(paused, TRIALS[1]) is None
    unfinished = replace(TRIALS[1], scores={4: 0.5})
    assert nested_in(tmp_path, plan_of()).train([TRIALS[0], unfinished], unfinished) is None
    assert trained.jobs == []


def test_a_default_that_is_the_best_is_trained_once(tmp_path: Path, trained: Trained) -> None:
    nested = nested_in(tmp_path, plan_of())
    assert nested.train(TRIALS, TRIALS[0]) is None
    assert trained.jobs == ALL[::2]
    found = nested.reported(TRIALS, TRIALS[0])
    assert found is not None
    assert found.default_alone


def test_a_training_that_diverges_counts_zero_and_is_not_trained_again(
    tmp_path: Path, trained: Trained
) -> None:
    trained.diverging = ("fold_2_trial_001",)
    nested = nested_in(tmp_path, plan_of())
    nested.train(TRIALS, TRIALS[1])
    nested.train(TRIALS, TRIALS[1])
    assert trained.jobs == ALL
    found = nested.reported(TRIALS, TRIALS[1])
    assert found is not None
    assert found.diverged == (f"fold 2, trial 1: site bern: {DIVERGED}",)
    assert found.optimism is not None
    assert [one.found for one in found.optimism.others] == [0.625, 0.0]


def test_trainings_of_other_cases_are_refused(tmp_path: Path, trained: Trained) -> None:
    nested_in(tmp_path, plan_of((1,))).train(TRIALS, TRIALS[1])
    plan = plan_of((1,))
    other = replace(plan, nested=(of_fold(plan.base, 1, "drawn anew"),))
    with pytest.raises(SettingsError, match="was trained when fold 1 had other cases; delete it"):
        nested_in(tmp_path, other).train(TRIALS, TRIALS[1])
    assert len(trained.jobs) == 2


def test_the_budget_counts_other_folds(tmp_path: Path, trained: Trained) -> None:
    # a training has 12 rounds of 8,000 bytes
    plan = plan_of(budget=Budget(gigabytes=0.0002))
    nested = nested_in(tmp_path, plan)
    assert nested.kept([]) == Cost(48, 4 * 96_000)
    stopped = nested.train(TRIALS, TRIALS[1])
    assert stopped == "--nested: --budget-gb 0.0002: 0.000192 are spent"
    assert trained.jobs == ALL[:2]
    # of fold 1 another trial may be found, of fold 2 both are missing
    assert nested.kept(TRIALS) == Cost(36, 3 * 96_000)
    larger = nested_in(tmp_path, replace(plan, budget=Budget(gigabytes=1)))
    assert larger.train(TRIALS, TRIALS[1]) is None
    assert trained.jobs == ALL


def choices(*folds: int | str) -> TuneChoices:
    return TuneChoices(dataset="1", configuration="2d", fold=0, study=Path("study"), nested=folds)


def test_folds_that_cannot_be_trained_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    base = plan_of().base
    other = SiteCases("bern", "Dataset002_B", ("b",), ("b",))
    known = {
        1: of_fold(base, 1, "c"),
        2: of_fold(base, 2, "b"),  # the case of the base
        3: replace(base, fold=3, sites=(replace(base.sites[0], validation_cases=()),)),
        4: replace(base, fold=4, sites=(other,)),  # another dataset's case of that name
    }
    monkeypatch.setattr(tune_folds, "resolve", lambda chosen: known[chosen.fold])
    assert runs_of_other_folds(choices(), base) == ()
    assert runs_of_other_folds(choices(4, 1), base) == (known[4], known[1])
    for chosen, problem in (
        (choices(0), "--nested 0: is the fold that settings are chosen by"),
        (choices("all"), "--nested all: has no validation case"),
        (choices(1, 1), "--nested 1: is given twice"),
        (choices(1, 2), "--nested 2: validates 1 case .b. as fold 0 does"),
        (choices(3), "--nested 3: no site has a validation case there"),
    ):
        with pytest.raises(SettingsError, match=problem):
            runs_of_other_folds(chosen, base)
    remote = replace(base, sites=(), remote_sites=("bern",))
    with pytest.raises(SettingsError, match="--nested with --server"):
        runs_of_other_folds(choices(1), remote)
