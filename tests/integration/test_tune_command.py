"""One command tunes within a budget; killed, it goes on; what is not possible is one line."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from consortium import wait_for
from study_database import STUDY, trials_of

import nnunetv2_federated as federated
from nnunetv2_federated.cli import compare as compare_command
from nnunetv2_federated.cli import train as train_command
from nnunetv2_federated.cli.tune import main
from nnunetv2_federated.experiment.tune_course import Course
from nnunetv2_federated.federation.files import only_one
from nnunetv2_federated.federation.halving import Bracket
from nnunetv2_federated.federation.run import read_run

SETTINGS = "sites = 2\n" + STUDY


@pytest.fixture
def settings(tmp_path: Path, results: Path) -> Path:
    del results
    path = tmp_path / "tune.toml"
    path.write_text(SETTINGS)
    return path


@pytest.mark.slow(60)
@pytest.mark.usefixtures("forked_trainings")
def test_a_study_killed_in_a_trial_ends_as_if_it_was_not(
    dataset_2d: str, settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    argv = [dataset_2d, "2d", "0", "--settings", str(settings)]
    command = [sys.executable, "-m", "nnunetv2_federated.cli.tune", *argv, "--study", str(killed)]
    first = subprocess.Popen(command)
    state = "trial_000/*/*/fold_0/federation/state.pt"
    wait_for(lambda: bool(list((killed / "trials").glob(state))), "round of the first trial")
    first.kill()
    first.wait()
    main([*argv, "--study", str(killed), "--workers", "2"])
    assert "continuing in" in capsys.readouterr().out

    chosen = tomllib.loads(SETTINGS)
    said: list[str] = []
    result = federated.tune(
        dataset_2d, "2d", 0, whole, chosen.pop("search"), say=said.append, **chosen
    )
    assert said[-1] == result.verdict
    assert result.stopped is None
    assert trials_of(killed) == trials_of(whole)
    scores = sorted(path.relative_to(whole) for path in whole.rglob("score_*.json"))
    # three trials to the first rung, the default and another to the end
    assert len(scores) == 5
    for score in scores:
        assert (killed / score).read_text() == (whole / score).read_text()

    # only the default and the best keep their weights
    best = tomllib.loads((whole / "best.toml").read_text())
    weights = {path.parts[-5] for path in whole.rglob("checkpoint_final.pth")}
    assert "trial_000" in weights
    assert len(weights) <= 2
    assert len(list(whole.rglob("federation.json"))) == 3
    page = (whole / "report.html").read_text()
    assert "noise" in page
    assert (whole / "tuning.png").stat().st_size > 10_000

    # what was found is what the commands take
    choices = train_command.command().parse(
        [dataset_2d, "2d", "0", "--settings", str(whole / "best.toml")]
    )
    assert (choices.rounds * choices.local_epochs, choices.sites) == (4, 2)
    assert choices.strategy == best["strategy"]
    found = whole / "comparison.toml"
    if found.is_file():  # the default is not the best
        compared = compare_command.command().parse(
            [dataset_2d, "2d", "0", "--settings", str(found)]
        )
        assert set(compared.federated) == {"default", "tuned"}
        assert compared.seeds == (12346, 12347, 12348)
        assert compared.federated["tuned"].strategy == choices.strategy
        assert compared.federated["tuned"].rounds == choices.rounds


@pytest.mark.slow(20)
@pytest.mark.usefixtures("forked_trainings", "results")
def test_what_was_found_is_trained_on_another_fold_and_its_optimism_shown(
    dataset_2d: str, tmp_path: Path
) -> None:
    study, said = tmp_path / "study", list[str]()

    def interrupted(line: str) -> None:
        said.append(line)
        if line.startswith("fold 1, trial 1: to round"):
            raise KeyboardInterrupt

    def tune(say: Callable[[str], None]) -> federated.TuningResult:
        return federated.tune(
            dataset_2d,
            "2d",
            0,
            study,
            {"initial_lr": [0.01, 0.02]},
            say=say,
            initial_lr=1e-7,  # the default hardly learns
            rounds=2,
            iterations_per_epoch=5,
            val_iterations=1,
            sites=2,
            device="cpu",
            brackets="none",
            rungs=1,
            trials=2,
            score_iterations=6,
            budget_rounds=8,
            nested=(1,),
        )

    with pytest.raises(KeyboardInterrupt):
        tune(interrupted)
    result = tune(said.append)
    assert result.stopped is None
    assert result.optimism is not None
    chosen, (other,) = result.optimism.chosen, result.optimism.others
    assert chosen.found > chosen.default
    assert (chosen.fold, other.fold) == (0, 1)
    assert f"on fold 1, which chose nothing: {other.found:.4f}" in result.verdict
    assert f"optimism {chosen.found - other.found:+.4f}" in result.verdict
    # each fold is scored on its own cases, and none was trained twice
    assert sum("fold 1, trial 0: to round" in line for line in said) == 1
    for trial in ("000", "001"):
        place = study / "nested" / f"fold_1_trial_{trial}"
        run = read_run(place)
        assert run.fold == 1
        assert run.settings == read_run(study / "trials" / f"trial_{trial}").settings
        assert (place / "score_00002.json").is_file()
    assert not list((study / "nested").rglob("*.pth"))
    page = (study / "report.html").read_text()
    assert "<td>fold 0, which chose</td>" in page
    assert "<td>rounds of these on other folds</td><td>4</td>" in page
    assert "<td>rounds</td><td>8</td><td>8</td>" in page


PROBLEMS = {
    "no space": ("", "[search]: names no setting to vary"),
    "unknown": ("[search]\nspeed = [1, 2]", "[search] speed: is no setting"),
    "not to vary": ("[search]\nrounds = [1, 2]", "[search] rounds: may not vary"),
    "no table": ("search = 1", "search must be tables"),
    "contradiction": (
        '[search]\nstrategy = ["fedavg", "fedavgm"]\n"fedprox.proximal_mu" = [0.1, 1.0]',
        "no trial has strategy fedprox",
    ),
    "an option that is none": (
        '[search]\nstrategy = ["fedavg", "fedprox"]\n"fedprox.mu" = [0.1, 1.0]',
        "--strategy-option mu: fedprox has proximal_mu",
    ),
    "a strategy for more sites": (
        '[search]\nstrategy = ["fedavg", "fedmedian"]',
        "a round may have no more than 2 replies",
    ),
    "no whole rounds": ("[search]\nlocal_epochs = [1, 3]", "no whole number of such rounds"),
    "rungs": ("rungs = 4\n[search]\nmomentum = [0.5, 0.9]", "--rungs 4 --reduction 2"),
    "budget": (
        "budget_rounds = 1\n[search]\nmomentum = [0.5, 0.9]",
        "--budget-rounds 1: allows no trial",
    ),
    "privacy": (
        "dp_epsilon = 5.0\n[search]\nmomentum = [0.5, 0.9]",
        "--dp-validation withhold: a tuning chooses by the sites' validation",
    ),
    "nested": (
        "nested = [1, 9]\n[search]\nmomentum = [0.5, 0.9]",
        "--nested 9: fold 9 does not exist: Dataset901_Balls has folds 0 to 4",
    ),
    "export": (
        'export = "no/such/folder/best.toml"\n[search]\nmomentum = [0.5, 0.9]',
        "no/such/folder cannot be written (No such file or directory)",
    ),
    "storage": (
        'storage = "nonsense"\n[search]\nmomentum = [0.5, 0.9]',
        "--storage: the database cannot be opened",
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_cannot_be_tuned_is_one_line_and_leaves_nothing(
    name: str, dataset_2d: str, settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, problem = PROBLEMS[name]
    base = SETTINGS[: SETTINGS.index("[search]")]
    if "rungs" in content:
        base = base.replace("rungs = 2\n", "")
    settings.write_text(base + content)
    study = tmp_path / "study"
    with pytest.raises(SystemExit) as end:
        main([dataset_2d, "2d", "0", "--settings", str(settings), "--study", str(study)])
    assert end.value.code == 2
    (line,) = [
        line for line in capsys.readouterr().err.splitlines() if not line.startswith("note:")
    ]
    assert problem in line
    assert not study.exists()


def test_a_folder_of_something_else_is_refused(
    dataset_2d: str, settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [dataset_2d, "2d", "0", "--settings", str(settings), "--study"]

    def refused(folder: Path, *flags: str) -> str:
        with pytest.raises(SystemExit) as end:
            main([*argv, str(folder), *flags])
        assert end.value.code == 2
        return capsys.readouterr().err

    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    assert "is not empty and holds no study.json" in refused(other)
    assert [path.name for path in other.iterdir()] == ["notes.txt"]

    study = tmp_path / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnunetv2_federated.experiment.tune_run.Course.run", _killed)
        with pytest.raises(KeyboardInterrupt):
            main([*argv, str(study)])
    for flags, different in (
        (["--momentum", "0.9"], "run settings momentum"),
        (["--score-iterations", "7"], "score_iterations"),
        (["--sampler", "random"], "schedule sampler"),
    ):
        problem = f"holds another study, with other {different}"
        assert problem in refused(study, *flags)
    with only_one(study / ".lock", ""):
        assert "another command is at work on it" in refused(study)
    (study / "study.json").write_text("{")
    assert "study.json is damaged: give another --study" in refused(study)


def test_a_database_that_fails_in_the_course_is_one_line(
    dataset_2d: str, settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study"

    def course(self: Course) -> None:
        (study / "study.db").write_bytes(b"a full disk, or a server that is gone" * 100)
        self._study.begin_bracket(0, Bracket(1, (0,), 2))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnunetv2_federated.experiment.tune_run.Course.run", course)
        with pytest.raises(SystemExit) as end:
            main([dataset_2d, "2d", "0", "--settings", str(settings), "--study", str(study)])
    assert end.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {study}/study.db: the database failed (DatabaseError: ")
    assert last.endswith("the same command goes on, and no trial is lost.")


def _killed(*_: object) -> None:
    raise KeyboardInterrupt
