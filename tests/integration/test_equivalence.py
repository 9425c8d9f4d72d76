"""What must be the same, bit for bit."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from commands import Command
from helpers import Train, assert_same, load_history, load_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_federated.nnunet.training.randomness import seed_everything
from nnunetv2_federated.nnunet.training.trainer import _no_benchmark


def train_stock(folder: Path) -> dict[str, torch.Tensor]:
    plans = {**load_json(str(folder / "nnUNetPlans.json")), "continue_training": False}
    seed_everything(12345)
    trainer = nnUNetTrainer(
        plans, "2d", 0, load_json(str(folder / "dataset.json")), torch.device("cpu")
    )
    trainer.num_epochs, trainer.num_iterations_per_epoch = 2, 2
    trainer.num_val_iterations_per_epoch = 2
    trainer.on_train_start()
    # stock nnU-Net chooses a blur algorithm by stopwatch; no two runs of it are comparable
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        _no_benchmark(loader)
    trainer.on_train_start = lambda: None
    trainer.run_training()
    return trainer.network.state_dict()


@pytest.mark.versions
def test_one_site_equals_stock_training(
    dataset_2d: str, nnunet_folders: Path, train: Train
) -> None:
    fold = train(dataset_2d, "2d", 0, "--sites", 1, "--partition", "iid", "--rounds", 2)
    stock = train_stock(nnunet_folders / "preprocessed" / "Dataset901_Balls")
    assert_same(load_weights(fold), stock)


def test_parking_trainers_changes_nothing(
    dataset_2d: str, train: Train, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = load_weights(train(dataset_2d, "2d", 0, "--rounds", 2))
    monkeypatch.setenv("nnUNet_results", str(results.parent / "parked"))
    train(dataset_2d, "2d", 0, "--rounds", 2, "--resident-trainers", 1)
    parked = next((results.parent / "parked").glob("*/*/fold_0"))
    assert_same(resident, load_weights(parked))


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--strategy", "fedadam", "--sites-per-round", "2"]])
def test_a_killed_run_resumes_to_the_same_weights(
    dataset_2d: str, train: Train, results: Path, tmp_path: Path, options: list[str]
) -> None:
    command = [dataset_2d, "2d", "0", "--rounds", "4", *options]
    uninterrupted = load_weights(train(*command))
    folder = tmp_path / "killed"
    environment = {**os.environ, "nnUNet_results": str(folder)}
    short = ["--iterations-per-epoch", "2", "--val-iterations", "2", "-device", "cpu"]
    module = ["-m", "nnunetv2_federated.cli.train"]
    said = tmp_path / "said"
    process = Command([*module, *command, *short], environment, tmp_path, said)
    history = folder / "Dataset901_Balls/nnUNetTrainerFederated__nnUNetPlans__2d/fold_0"
    wait_for_rounds(history / "federation.json", 2, process)
    process.kill()
    process.wait()
    done = len(load_history(history)["rounds"])
    assert done < 4
    resumed = [*module, *command[:3], "--c", "-device", "cpu", "--quiet"]
    assert Command(resumed, environment, tmp_path, said).wait() == 0, said.read_text()
    rounds = load_history(history)["rounds"]
    assert [record["round"] for record in rounds] == [0, 1, 2, 3]
    assert_same(uninterrupted, load_weights(history))
    del results


def wait_for_rounds(path: Path, count: int, process: Command) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        if path.is_file() and len(json.loads(path.read_text())["rounds"]) >= count:
            return
        time.sleep(0.05)
    pytest.fail("the run to be killed ended, or never finished a round")


@pytest.mark.slow(150)
def test_ray_gives_the_same_weights(
    dataset_2d: str, train: Train, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="needs the ray extra")
    here = load_weights(train(dataset_2d, "2d", 0, "--rounds", 2))
    monkeypatch.setenv("nnUNet_results", str(results.parent / "ray"))
    train(dataset_2d, "2d", 0, "--rounds", 2, "--backend", "ray")
    there = next((results.parent / "ray").glob("*/*/fold_0"))
    assert_same(here, load_weights(there))
