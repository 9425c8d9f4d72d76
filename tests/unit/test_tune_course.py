"""A study goes on to be what it would have been, wherever it was killed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tuning_on_paper import BASE, KilledError, Paper, a_plan, content, killed_after, open_study, run

from nnunetv2_federated.experiment.tune import notes_on
from nnunetv2_federated.experiment.tune_course import ALL_TRIED, Course
from nnunetv2_federated.experiment.tune_folder import LOCK_FILE, open_study_folder
from nnunetv2_federated.experiment.tune_pieces import best_trial
from nnunetv2_federated.experiment.tune_plan import TuningPlan
from nnunetv2_federated.experiment.tune_study import Study, Trial
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.files import only_one
from nnunetv2_federated.federation.halving import Halving
from nnunetv2_federated.federation.tuning_budget import Budget


def kills(plan: TuningPlan, folder: Path) -> Iterator[Study]:
    """Yield the study of a command that is killed ever later, until it is no more."""
    paper = Paper(plan)
    for writes in itertools.count(0, 3):
        study = open_study(folder, plan)
        killed_after(writes, study)
        try:
            run(study, plan, paper)
        except KilledError:
            yield open_study(folder, plan)
            continue
        return


def test_a_study_that_is_killed_anywhere_equals_one_that_is_not(tmp_path: Path) -> None:
    plan = a_plan(12, Halving("halving", 3, 3, size=6))
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = open_study(tmp_path / "whole", plan)
    assert run(whole, plan) is None
    count = sum(1 for _ in kills(plan, tmp_path / "killed"))
    assert count >= 5
    killed = open_study(tmp_path / "killed", plan)
    assert content(killed) == content(whole)
    trials = content(whole)
    assert len(trials) == 12
    assert {t.state for t in trials} == {"stopped", "complete"}
    assert len({str(t.values) for t in trials}) == 12
    # one diverged before it had a score, another in the end
    diverged = [t.scores for t in trials if t.diverged is not None]
    assert {1: 0.0} in diverged
    assert any(4 in scores for scores in diverged)
    # the default reaches the end beside the best of its bracket
    assert trials[0].state == "complete"
    assert [len([t for t in trials if t.bracket == i and 12 in t.scores]) for i in (0, 1)] in (
        [2, 1],
        [1, 1],
    )
    best = best_trial(trials)
    assert best is not None
    assert best.scores[12] == max(t.scores[12] for t in trials if 12 in t.scores)
    # options stand only where the strategy has them
    for trial in trials:
        assert ("fedprox.proximal_mu" in trial.values) == (trial.values["strategy"] == "fedprox")


def test_a_trial_that_diverges_is_stopped_and_seen_by_the_sampler(tmp_path: Path) -> None:
    plan = a_plan(8, Halving("none", 3, 1), {"initial_lr": [0.09, 0.095, 0.02, 0.01]})
    study = open_study(tmp_path, plan)
    paper = Paper(plan)
    said: list[str] = []
    # the default has 0.01, too: there are three others
    assert Course(plan, study, paper, said.append).run() == ALL_TRIED
    assert "4 of 8 trials have ended; the best is trial" in said[-1]
    again: list[str] = []
    assert Course(plan, study, paper, again.append).run() == ALL_TRIED
    assert again == []
    trials = content(study)
    assert sorted(t.state for t in trials) == ["complete", "complete", "stopped", "stopped"]
    diverged = [t for t in trials if t.diverged is not None]
    assert [t.scores for t in diverged] == [{12: 0.0}, {12: 0.0}]
    best = best_trial(trials)
    assert best is not None
    assert best.values == {"initial_lr": 0.02}
    assert paper.weights == {0, best.number}


def test_budgets_end_a_study_which_a_larger_one_continues(tmp_path: Path) -> None:
    halving = Halving("halving", 3, 2, size=3)
    # a bracket: 3 * 4 + 1 * 8, and 8 for the default in the first
    rounds = a_plan(9, halving, budget=Budget(rounds=40))
    study = open_study(tmp_path, rounds)
    paper = Paper(rounds)
    assert run(study, rounds, paper) == "--budget-rounds 40: 40 are planned"
    assert [t.bracket for t in content(study)] == [0, 0, 0, 1]
    assert paper.spent(content(study)).rounds <= 40

    (tmp_path / "hours").mkdir()
    momentum: dict[str, Any] = {"momentum": {"low": 0.5, "high": 0.99}}
    hours = a_plan(3, halving, momentum, Budget(hours=15))
    study = open_study(tmp_path / "hours", hours)
    paper = Paper(hours)
    paper.finished = False
    assert run(study, hours, paper) == "--budget-hours 15: 12 are spent"
    assert not paper.finished  # trials are paused
    paused = content(study)
    assert [sorted(t.scores) for t in paused] == [[4], [4], [4]]
    longer = a_plan(3, halving, momentum, Budget(hours=100))
    assert run(open_study(tmp_path / "hours", longer), longer, paper) is None
    assert paper.finished
    assert all(not t.running for t in content(study))


def test_hours_end_a_study_in_its_first_rung(tmp_path: Path) -> None:
    """What a round takes is known after the first trial, not before."""
    momentum: dict[str, Any] = {"momentum": {"low": 0.5, "high": 0.99}}
    plan = a_plan(9, Halving("halving", 3, 2, size=9), momentum, Budget(hours=9))
    study, paper = open_study(tmp_path, plan), Paper(plan)
    assert run(study, plan, paper) == "--budget-hours 9: 8 are spent"
    assert [sorted(t.scores) for t in content(study)] == [[4], [4], *[[]] * 7]


def test_a_rung_that_was_not_finished_names_no_winner() -> None:
    """Trial 0 was trained to the end first; trial 1 is better where both have been."""
    default = Trial(0, 0, {}, {4: 0.5, 12: 0.625}, "running", None)
    better = Trial(1, 0, {}, {4: 0.75}, "running", None)
    worse = Trial(2, 0, {}, {4: 0.25}, "stopped", None)
    assert best_trial([default, better, worse]) == better
    ended = [replace(trial, state="complete") for trial in (default, better)]
    assert best_trial([*ended, worse]) == ended[0]


def test_all_settings_that_exist_are_tried_and_that_is_said(tmp_path: Path) -> None:
    plan = a_plan(9, Halving("halving", 3, 2, size=3), {"momentum": [0.5, 0.75, 0.9, 0.95]})
    study = open_study(tmp_path, plan)
    assert run(study, plan) == ALL_TRIED
    assert len(content(study)) < 9
    assert all(not trial.running for trial in content(study))


def test_gigabytes_are_counted_before_they_are_sent(tmp_path: Path) -> None:
    # 12 rounds of 8,000 bytes a trial
    plan = a_plan(3, Halving("none", 3, 1), {"momentum": [0.5, 0.9]}, Budget(gigabytes=0.0002))
    study = open_study(tmp_path, plan)
    paper = Paper(plan)
    assert run(study, plan, paper) == "--budget-gb 0.0002: 0.000192 are spent"
    assert [sorted(t.scores) for t in content(study)] == [[12], [12], []]
    assert paper.spent(content(study)).bytes == 192_000


def test_more_trials_go_on_where_fewer_ended(tmp_path: Path) -> None:
    halving = Halving("hyperband", 3, 2)
    few, many = (a_plan(trials, halving) for trials in (3, 8))
    study = open_study(tmp_path, few)
    assert run(study, few) is None
    before = content(study)
    assert run(open_study(tmp_path, many), many) is None
    after = content(open_study(tmp_path, many))
    assert after[:3] == before
    assert [t.bracket for t in after] == [0, 0, 0, 1, 1, 2, 2, 2]


def test_what_a_private_tuning_costs_is_said_aloud() -> None:
    plan = a_plan(3, Halving("none", 3, 1))
    assert notes_on(plan) == []
    private = BASE.changed(dp_noise=1.0, dp_validation="clear")
    (line,) = notes_on(replace(plan, base=replace(plan.base, settings=private)))
    assert "every trial, and with --nested every training on another fold, is charged" in line
    assert "not protected" in line


def test_two_commands_that_begin_in_one_folder_at_once_are_kept_apart(tmp_path: Path) -> None:
    plan = a_plan(3, Halving("none", 3, 1))
    folder = tmp_path / "below" / "study"
    folder.mkdir(parents=True)
    with only_one(folder / LOCK_FILE, ""):  # a command that has not written its first file yet
        with pytest.raises(SettingsError, match="another command is at work on it"):
            open_study_folder(folder, plan).__enter__()
        assert [path.name for path in folder.iterdir()] == [LOCK_FILE]
    with open_study_folder(folder, plan) as (name, began):
        assert not began
        with pytest.raises(SettingsError, match="another command is at work on it"):
            open_study_folder(folder, plan).__enter__()
    with open_study_folder(folder, plan) as again:
        assert again == (name, True)


def test_a_command_that_began_elsewhere_while_this_one_waited_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first look and the lock another command may begin a study, and end."""
    ours, theirs = (a_plan(3, Halving("none", 3, rungs)) for rungs in (1, 2))
    taken = only_one

    def after_another(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr("nnunetv2_federated.experiment.tune_folder.only_one", taken)
        with open_study_folder(tmp_path, theirs):
            pass
        return taken(*args, **kwargs)

    monkeypatch.setattr("nnunetv2_federated.experiment.tune_folder.only_one", after_another)
    with pytest.raises(SettingsError, match="holds another study, with other schedule rungs"):
        open_study_folder(tmp_path, ours).__enter__()


def test_a_kill_before_the_first_file_leaves_a_folder_to_begin_in(tmp_path: Path) -> None:
    plan = a_plan(3, Halving("none", 3, 1))
    for left in ((), (LOCK_FILE,), (LOCK_FILE, "study.json.tmp")):
        folder = tmp_path / str(len(left))
        folder.mkdir()
        for name in left:
            (folder / name).touch()
        with open_study_folder(folder, plan) as (_, began):
            assert not began
            assert (folder / "study.json").stat().st_size > 0
