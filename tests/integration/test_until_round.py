"""A training that pauses is in the end the training in one go."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers import Train, assert_same, load_history, load_weights

from nnunetv2_federated.experiment.choices import TrainChoices
from nnunetv2_federated.experiment.train import check_pause
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.run import Run, SiteCases
from nnunetv2_federated.federation.settings import FederationSettings


@pytest.mark.slow(15)
def test_a_paused_training_continues_to_the_same_weights(
    dataset_2d: str, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [dataset_2d, "2d", 0, "--sites", 2, "--strategy", "fedavgm"]
    at_once = load_weights(train(*flags, "--rounds", 3))
    shutil.rmtree(next((tmp_path / "results").glob("Dataset*")))

    fold = train(*flags, "--rounds", 3, "--until-round", 1)
    assert not (fold / "checkpoint_final.pth").exists()
    assert not (fold / "validation").exists()
    assert [r["lr"] for r in load_history(fold)["rounds"]] == [0.01]
    # what is reached already is not trained again, and the next pause is later
    train(dataset_2d, "2d", 0, "--c", "--until-round", 1)
    train(dataset_2d, "2d", 0, "--c", "--until-round", 2)
    paused = load_history(fold)["rounds"]
    assert [r["lr"] for r in paused] == pytest.approx([0.01, 0.01 * (2 / 3) ** 0.9])
    assert not (fold / "checkpoint_final.pth").exists()

    train(dataset_2d, "2d", 0, "--c")
    assert_same(load_weights(fold), at_once)
    assert (fold / "validation" / "summary.json").is_file()
    assert [r["global_model"] is None for r in load_history(fold)["rounds"]] == [False] * 3
    with pytest.raises(SystemExit) as end:
        train(dataset_2d, "2d", 0, "--rounds", 3, "--until-round", 4)
    assert end.value.code == 2
    assert "--until-round 4: must be at least 1 and at most --rounds (3)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"disable_checkpointing": True}, "--disable_checkpointing: nothing would be left"),
        ({"sites": (), "remote_sites": ("bern",)}, "--server: pauses trainings on this machine"),
    ],
)
def test_a_training_that_could_not_continue_does_not_pause(
    changes: dict[str, object], problem: str
) -> None:
    sites: dict[str, object] = {"sites": (SiteCases("bern", "Dataset001_A", ("case",), ()),)}
    run = Run(
        dataset="Dataset001_A",
        configuration="2d",
        fold=0,
        trainer="nnUNetTrainerFederated",
        plans_name="nnUNetPlans",
        device="cpu",
        settings=FederationSettings(),
        **{**sites, **changes},  # type: ignore[arg-type]
    )
    check_pause(run, None)
    with pytest.raises(SettingsError, match=problem):
        check_pause(run, 2)


@pytest.mark.parametrize(
    ("other", "flag"),
    [
        ({"val": True}, "--val"),
        ({"prepare_only": True}, "--prepare-only"),
        ({"folds": (0,), "configurations": ("2d",)}, "-f"),
    ],
)
def test_only_one_training_pauses(other: dict[str, object], flag: str) -> None:
    target: dict[str, object] = {"dataset": "501", "configuration": "2d", "fold": 0}
    with pytest.raises(SettingsError, match=f"--until-round 2 {flag}: pauses one training"):
        TrainChoices(**{**target, "until_round": 2, **other})  # type: ignore[arg-type]
