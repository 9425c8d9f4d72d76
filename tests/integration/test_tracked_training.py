"""A federation followed by all trackers, as their users read it."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import a_run
from mlflow import MlflowClient
from mlflow.entities import Run as MLflowRun
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nnunetv2_federated.flower.launch import launch, prepare
from nnunetv2_federated.nnunet.training.global_model import GlobalModel
from nnunetv2_federated.nnunet.training.server_state import ServerState
from nnunetv2_federated.nnunet.training.tracking import MLflowTracker

Train = Callable[..., Path]
ROUNDS = 2


@pytest.fixture
def switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb", "tensorboard", "mlflow"):
        monkeypatch.setenv(f"nnUNet_{name}_enabled", "1")
    for name in ("WANDB_MODE", "nnUNet_wandb_mode", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def wandb_runs(folder: Path) -> list[Path]:
    return sorted(folder.rglob("run-*.wandb"))


def mlflow_runs(results: Path) -> tuple[MlflowClient, list[MLflowRun]]:
    client = MlflowClient(tracking_uri=f"sqlite:///{results / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("nnunet")
    return client, client.search_runs([experiment.experiment_id])


def interrupt(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop in the last round at the worst moment: the one before is logged, but not yet saved."""
    options = {"sites": 2, "method": "iid", "rounds": ROUNDS}
    options |= {"iterations_per_epoch": 2, "val_iterations": 2, "resident_trainers": 1}
    run = a_run(dataset, **options)
    save = GlobalModel.save_state

    def fail_in_the_last(model: GlobalModel, state: ServerState) -> None:
        if len(state.rounds) == ROUNDS:
            raise OSError("disk full")
        save(model, state)

    with monkeypatch.context() as patched:
        patched.setattr(GlobalModel, "save_state", fail_in_the_last)
        with pytest.raises(OSError, match="disk full"):
            launch(run, prepare(run))


@pytest.mark.usefixtures("switched_on")
def test_a_federation_is_one_run_also_when_it_was_interrupted(
    dataset_2d: str, train: Train, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(dataset_2d, monkeypatch)
    (first,) = wandb_runs(results)  # of two sites that park each other, and a server
    assert mlflow_runs(results)[1][0].info.status == "FAILED"

    fold = train(dataset_2d, "2d", 0, "--c")

    rounds = json.loads((fold / "federation.json").read_text())["rounds"]
    events = EventAccumulator(str(fold / "tensorboard"))
    events.Reload()
    client, (tracked,) = mlflow_runs(results)
    assert tracked.info.status == "FINISHED"

    def told(key: str) -> list[float]:
        """Return what both tell, each round once, after seeing that they tell the same."""
        board = {e.step: e.value for e in events.Scalars(key)}
        store = {m.step: m.value for m in client.get_metric_history(tracked.info.run_id, key)}
        assert len(events.Scalars(key)) == len(board)
        assert len(client.get_metric_history(tracked.info.run_id, key)) == len(store)
        assert board == pytest.approx(store)
        return [board[step] for step in sorted(board)]

    judged = [r["global_model"] for r in rounds]
    site = [r["sites"]["site_02"] for r in rounds]
    for key, expected in {
        "train_losses": [r["train_loss"] for r in rounds],
        "lrs": [r["lr"] for r in rounds],
        "val_losses": [r["loss"] for r in judged],
        "mean_fg_dice": [r["dice"] for r in judged],
        "dice_per_class_or_region/class_2": [r["dice_per_class"][1] for r in judged],
        "sites/site_02/train_loss": [r["train_loss"] for r in site],
        "sites/site_02/dice": [r["dice"] for r in site],
        "sites/site_02/global_model/loss": [r["sites"]["site_02"]["loss"] for r in judged],
        "bytes_up": [r["bytes_up"] for r in rounds],
        "failed_sites": [0] * ROUNDS,
    }.items():
        assert told(key) == pytest.approx(expected), key
    assert len(told("seconds/round")) == len(told("ema_fg_dice")) == ROUNDS
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert told("final_val/foreground_dice") == pytest.approx([summary["foreground_mean"]["Dice"]])

    params = tracked.data.params
    assert params["settings/rounds"] == str(ROUNDS)
    assert params["hparas/num_iterations_per_epoch"] == "2"
    assert "config/text_summary" in events.Tags()["tensors"]
    # offline, W&B writes a file for each start, to be put together when they are uploaded
    started = wandb_runs(results)
    assert [path.name for path in started] == [first.name] * 2
    for path in started:
        assert b"sites/site_02/dice" in path.read_bytes()
    everything = [*(fold / "tensorboard").iterdir(), *started, results / "mlflow.db"]
    assert not any(b"case_" in path.read_bytes() for path in everything)
    an_outage_costs_no_point(fold, tracked.info.run_id, client, results / "mlflow.db")


def an_outage_costs_no_point(fold: Path, run: str, client: MlflowClient, store: Path) -> None:
    """Take the store's table away while a round is written."""
    before = len(client.get_metric_history(run, "train_losses"))
    tracker = MLflowTracker(fold, "", run, ROUNDS)
    tracker.log("train_losses", 0.5, ROUNDS)
    with contextlib.closing(sqlite3.connect(store)) as other:
        other.execute("ALTER TABLE metrics RENAME TO elsewhere")
        tracker.flush()
        other.execute("ALTER TABLE elsewhere RENAME TO metrics")
    assert len(client.get_metric_history(run, "train_losses")) == before
    tracker.log("train_losses", 0.4, ROUNDS + 1)
    tracker.close()
    points = client.get_metric_history(run, "train_losses")[before:]
    assert [(p.step, p.value) for p in points] == [(ROUNDS, 0.5), (ROUNDS + 1, 0.4)]
    assert client.get_run(run).info.status == "FAILED"  # the rounds were not said to be done
