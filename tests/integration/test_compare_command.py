"""One command trains, tests and reports every arm; it continues, and shows what failed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import Command
from consortium import wait_for

from nnunetv2_federated.cli.compare import main

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_trainings")]
SHORT = ["--rounds", "1", "--iterations-per-epoch", "1", "--val-iterations", "1", "-device", "cpu"]


def models(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder / "models").parent) for p in folder.rglob("tests.json"))


def test_a_failed_arm_is_shown_and_tried_again(
    dataset_2d: str, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del results
    folder = tmp_path / "out"
    argv = [dataset_2d, "2d", "0", "--sites", "2", "--arms", "federated", "centralised", *SHORT]
    with pytest.raises(SystemExit) as exit_:
        main([*argv, "-o", str(folder), "--external-site", "site_03"])
    assert exit_.value.code == 2
    assert "the sites are site_01, site_02" in capsys.readouterr().err
    assert not folder.exists()

    # a file where the training wants its folder
    obstacle = folder / "models" / "centralised" / "seed_12345" / "fold_0" / "Dataset901_Balls"
    federated = [*argv, "-o", str(folder)]
    _begin(federated, folder, obstacle)
    with pytest.raises(SystemExit) as exit_:
        main(federated)
    assert exit_.value.code == 1
    assert "centralised, seed 12345, fold 0" in (folder / "report.html").read_text()
    assert models(folder) == ["federated/fedavg/seed_12345/fold_0"]

    obstacle.unlink()
    # as a kill after the training of a model and before its test leaves it
    (folder / "models/federated/fedavg/seed_12345/fold_0/tests.json").unlink()
    main(federated)
    assert len(models(folder)) == 2
    assert "failed or are not finished" not in (folder / "report.html").read_text()


def test_a_comparison_killed_in_a_training_ends_as_if_it_was_not(
    dataset_2d: str, results: Path, tmp_path: Path
) -> None:
    """The command and its training by kill -9; in between the training holds the folder."""
    del results
    # so many that it is not at its end before it can be stopped, on a busy machine
    short = ["--rounds", "16", "--iterations-per-epoch", "2", "--val-iterations", "1"]
    argv = [dataset_2d, "2d", "0", "--sites", "2", "--arms", "federated", *short, "-device", "cpu"]
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    command = ["-m", "nnunetv2_federated.cli.compare", *argv, "-o", str(killed)]
    # no fork: the kernel would wake what is stopped in the process group that a fork leaves
    first = subprocess.Popen([sys.executable, *command])
    _wait_for(killed, "run.json", first)  # of the training, which has begun
    found = subprocess.run(
        ["pgrep", "-P", str(first.pid), "-f", "train_run"], capture_output=True, check=True
    )
    training = int(found.stdout)
    _wait_for(killed, "state.pt", first)  # its first round is done
    os.kill(training, signal.SIGSTOP)
    # a thread that still writes to the disk would take the SIGTERM that its parent's end brings
    wait_for(lambda: set(_states(training)) == {"T"}, "stop of all threads", seconds=60)
    first.kill()
    first.wait()
    refused = tmp_path / "second.out"
    status = Command(command, os.environ, tmp_path, refused).wait()
    os.kill(training, signal.SIGKILL)
    wait_for(lambda: _ended(training), "end of the killed training", seconds=60)
    assert status == 2
    assert "is still at work" in refused.read_text()
    assert models(killed) == []

    main([*argv, "-o", str(killed)])
    main([*argv, "-o", str(undisturbed)])

    (model,) = models(killed)
    assert "continuing after round" in (killed / "models" / model / "train.log").read_text()
    tests = [
        (folder / "models" / model / "tests.json").read_text() for folder in (killed, undisturbed)
    ]
    assert json.loads(tests[0]) == json.loads(tests[1])


def _wait_for(folder: Path, name: str, command: subprocess.Popen[bytes]) -> None:
    while not list(folder.rglob(f"federation/{name}")):
        assert command.poll() is None
        time.sleep(0.02)


def _states(pid: int) -> list[str]:
    """State of each thread of a process, as in ps; none if the process is gone."""
    try:
        stats = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/stat")]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [stat.rpartition(")")[2].split()[0] for stat in stats]


def _ended(pid: int) -> bool:
    """Whether a process is gone, or holds no file any more as it waits for its parent."""
    return set(_states(pid)) <= {"Z"}


def _begin(argv: list[str], folder: Path, obstacle: Path) -> None:
    """Leave what a command leaves that was killed at once, and an obstacle."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnunetv2_federated.experiment.compare.run_models", _killed)
        with pytest.raises(KeyboardInterrupt):
            main(argv)
    assert (folder / "comparison.json").is_file()
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("")


def _killed(*_: object, **__: object) -> int:
    raise KeyboardInterrupt


def test_a_test_set_that_is_absent_is_one_line(
    dataset_2d: str, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del results
    with pytest.raises(SystemExit) as exit_:
        main([dataset_2d, "2d", "0", "--test-set", *SHORT, "-o", str(tmp_path / "out")])
    error = capsys.readouterr().err.strip()
    assert exit_.value.code == 2
    assert "imagesTs has no images" in error
    assert len(error.splitlines()) == 1


def test_classifiers_are_compared_by_the_same_command(
    dataset_cls: str, results: Path, tmp_path: Path
) -> None:
    del results
    folder = tmp_path / "out"
    main(
        [
            *(dataset_cls, "2d_cls", "0", "-tr", "nnUNetTrainerCls", "--test-set", "--sites", "2"),
            *("--arms", "federated", "centralised", "--rounds", "1", "-device", "cpu"),
            *("-o", str(folder)),
        ]
    )
    arms = json.loads((folder / "comparison.json").read_text())["arms"]
    # a pass over the mean site's 16 training cases in batches of 8, for every model
    assert [arm["options"]["iterations_per_epoch"] for arm in arms] == [2, 2]
    text = (folder / "report.md").read_text()
    assert "| model | runs | AUROC | accuracy |" in text
    assert "federated/fedavg | centralised | all sites | 10 |" in text


def test_personal_models_and_the_ensemble_of_local_ones_are_tested_beside_the_others(
    dataset_2d: str,
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raw = Path(os.environ["nnUNet_raw"]) / "Dataset901_Balls"  # noqa: SIM112
    own = tmp_path / "raw" / raw.name
    shutil.copytree(raw, own)
    for folder, ending in (("images", "_0000"), ("labels", "")):
        (own / f"{folder}Ts").mkdir()
        for number in (0, 1, 6, 7):
            shutil.copyfile(
                raw / f"{folder}Tr" / f"case_{number:02d}{ending}.png",
                own / f"{folder}Ts" / f"test_{number:02d}{ending}.png",
            )
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    table = tmp_path / "cases.csv"
    cases = [f"case_{i:02d}" for i in range(12)] + [f"test_{i:02d}" for i in (0, 1, 6, 7)]
    rows = [f"{case},{'north' if int(case[-2:]) < 6 else 'south'}" for case in cases]
    table.write_text("\n".join(["case,site", *rows]) + "\n")
    folder = tmp_path / "out"
    argv = [
        *(dataset_2d, "2d", "0", "--partition", "column", "--case-table", str(table)),
        *("--by", "site", "--arms", "local", "ensemble", "federated", *SHORT),
        *("--personal", "finetune", "--personal-iterations", "2", "-o", str(folder)),
    ]
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 2
    assert "add --test-set" in capsys.readouterr().err

    main([*argv, "--test-set"])

    arms = ["ensemble", "federated/fedavg", "local/north", "local/south"]
    arms += ["personal/fedavg/north", "personal/fedavg/south"]
    assert models(folder) == [f"{arm}/seed_12345/fold_0" for arm in arms]
    tested = json.loads((folder / "models/ensemble/seed_12345/fold_0/tests.json").read_text())
    assert len(tested) == 4
    members = sorted((folder / "models/ensemble/seed_12345/fold_0/ensemble").glob("fold_*"))
    assert [member.name for member in members] == ["fold_0", "fold_1001"]
    text = (folder / "report.md").read_text()
    assert "personal/fedavg/north | federated/fedavg | north | 2 |" in text
    assert "personal models of federated/fedavg, at home and compared with training alone" in text
    options = {
        a["name"]: a["options"]
        for a in json.loads((folder / "comparison.json").read_text())["arms"]
    }
    assert options["federated/fedavg"]["personal"] == "finetune"
    assert "personal" not in options["local/north"]
    del results
