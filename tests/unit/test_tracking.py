from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.history import RoundRecord, leaves, round_numbers
from nnunetv2_federated.nnunet.training.tracking import (
    _allowed,
    open_trackers,
    untracked,
    wanted_trackers,
)

RECORD = {
    "round": 4,
    "participants": ["bern", "oslo", "lyon"],
    "failed": {"lyon": "OSError: /data/case_07.b2nd"},
    "seconds": {"round": 3.0, "training": 2.0},
    "bytes_down": 300,
    "bytes_up": 200,
    "train_loss": -0.4,
    "sites": {
        "bern": {
            "training_cases": 6, "train_loss": -0.5, "loss": -0.4, "dice": 0.5,
            "dice_per_class": [0.4, 0.6],
        },
        "oslo": {
            "training_cases": 2, "train_loss": -0.3, "loss": math.nan, "dice": 0.3,
            "dice_per_class": [0.3],
        },
    },
    "updates": {
        "bern": {"norm": 2.5, "cosine": 0.25, "bound": 9.0, "outcome": "accepted"},
        "lyon": {"norm": 99.0, "cosine": None, "bound": 9.0, "outcome": "refused"},
    },
    "global_model": {"dice": 0.6, "sites": {"bern": {"loss": -0.45, "dice": 0.6}}},
}  # fmt: skip


def test_a_round_is_told_by_path_and_without_what_an_error_says() -> None:
    assert round_numbers(RoundRecord.from_plain(RECORD)) == {
        "seconds/round": 3.0,
        "seconds/training": 2.0,
        "bytes_down": 300.0,
        "bytes_up": 200.0,
        "failed_sites": 1.0,
        "sites/bern/training_cases": 6.0,
        "sites/bern/train_loss": -0.5,
        "sites/bern/loss": -0.4,
        "sites/bern/dice": 0.5,
        "sites/bern/dice_per_class/class_1": 0.4,
        "sites/bern/dice_per_class/class_2": 0.6,
        "sites/bern/update_norm": 2.5,
        "sites/bern/update_cosine": 0.25,
        "sites/bern/failed": 0.0,
        "sites/bern/global_model/loss": -0.45,
        "sites/bern/global_model/dice": 0.6,
        "sites/lyon/update_norm": 99.0,
        "sites/lyon/failed": 1.0,
        "sites/oslo/training_cases": 2.0,
        "sites/oslo/train_loss": -0.3,
        "sites/oslo/dice": 0.3,
        "sites/oslo/dice_per_class/class_1": 0.3,
        "sites/oslo/failed": 0.0,
    }
    not_validated = RoundRecord.from_plain({**RECORD, "global_model": None})
    assert round_numbers(not_validated)["sites/bern/dice"] == 0.5


def test_leaves_have_their_path() -> None:
    tree = {"a": {"b": {"c": 1}, "d": None}, "e": "text"}
    assert dict(leaves(tree)) == {"a/b/c": 1, "a/d": None, "e": "text"}


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("sites/Zürich 2/dice", "sites/Zürich 2/dice"),
        ("sites/a$b/dice", "sites/a-24-b/dice"),
        ("final_val/class_(1, 2)_dice", "final_val/class_-28-1-2c- 2-29-_dice"),
    ],
)
def test_mlflow_takes_the_keys(key: str, allowed: str) -> None:
    from mlflow.utils.validation import _validate_metric_name  # noqa: PLC0415

    assert _allowed(key) == allowed
    _validate_metric_name(allowed)


@pytest.mark.parametrize("name", ["wandb", "tensorboard", "mlflow"])
def test_a_switch_is_0_or_1_and_its_package_there(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    switch = f"nnUNet_{name}_enabled"
    assert wanted_trackers() == []
    monkeypatch.setenv(switch, "1")
    assert wanted_trackers() == [name]
    monkeypatch.setenv(switch, "yes")
    with pytest.raises(SettingsError, match=f"^{switch}=yes: must be 0 or 1"):
        wanted_trackers()
    # a folder of that name, as W&B leaves in the working directory, is no package
    (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv(switch, "1")
    with pytest.raises(SettingsError, match=rf"{switch}=1 needs .*nnunetv2-federated\[{name}\]"):
        wanted_trackers()


def test_the_switch_is_as_before_after_a_trainer_was_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import os  # noqa: PLC0415

    for value in ("1", None):
        if value is None:
            monkeypatch.delenv("nnUNet_wandb_enabled")
        else:
            monkeypatch.setenv("nnUNet_wandb_enabled", value)
        with untracked():
            assert os.environ["nnUNet_wandb_enabled"] == "0"  # noqa: SIM112
        assert os.environ.get("nnUNet_wandb_enabled") == value  # noqa: SIM112


def test_a_server_that_is_away_is_told_before_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("nnUNet_mlflow_enabled", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SettingsError, match="nnUNet_mlflow_enabled, http://127"):
        open_trackers(tmp_path / "dataset" / "model" / "fold_0", "title", {}, 0)
