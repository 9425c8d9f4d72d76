"""Trainings as a user starts them, on tiny data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import torch
from helpers import Train, a_run, load_history
from mlflow import MlflowClient
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess
from small_datasets import plan_and_preprocess, write_dataset

from nnunetv2_federated.cli.train import main
from nnunetv2_federated.cli.trainer_folder import trainer_folders
from nnunetv2_federated.federation.history import RoundRecord
from nnunetv2_federated.federation.messages import TrainTask
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.flower.launch import launch, prepare
from nnunetv2_federated.nnunet.evaluation.validation import join_summaries
from nnunetv2_federated.nnunet.training.site_pool import SitePool
from nnunetv2_federated.nnunet.training.weights import to_vector


@pytest.mark.versions
def test_a_federation_leaves_what_nnunet_leaves(dataset_2d: str, train: Train) -> None:
    fold = train(dataset_2d, "2d", 0, "--rounds", 2, "--strategy", "fedprox", "--local-epochs", 2)
    names = {path.name for path in fold.iterdir()} | {p.name for p in fold.parent.iterdir()}
    assert names >= {
        "checkpoint_final.pth",
        "checkpoint_best.pth",
        "progress.png",
        "plans.json",
        "dataset.json",
        "dataset_fingerprint.json",
        "federation.json",
        "federation.png",
    }
    assert "foreground_mean" in json.loads((fold / "validation/summary.json").read_text())
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    content = load_history(fold)
    assert [r["lr"] for r in content["rounds"]] == pytest.approx([0.01, 0.01 * 0.5**0.9])
    for record in content["rounds"]:
        assert sorted(record["sites"]) == ["site_01", "site_02", "site_03"]
        assert sorted(record["updates"]) == ["site_01", "site_02", "site_03"]
        for update in record["updates"].values():
            assert update["outcome"] == "accepted"
            assert 0 < update["norm"] < update["bound"]
            assert -1 <= update["cosine"] <= 1
        assert record["global_model"] is not None
        message = record["bytes_up"] / 3
        assert message <= 1.01 * 4 * content["parameters"]


VARIANTS = {
    "another trainer": ["-tr", "nnUNetTrainerDA5"],
    "fold all": ["--sites", "2"],
    "reset momentum": ["--local-momentum", "reset", "--momentum", "0.9", "--batch-size", "2"],
    "krum": ["--strategy", "krum"],
    "16 bits": ["--transport-dtype", "bfloat16"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_run(name: str, dataset_2d: str, train: Train) -> None:
    fold = "all" if name == "fold all" else "0"
    folder = train(dataset_2d, "2d", fold, "--rounds", 1, *VARIANTS[name])
    assert (folder / "checkpoint_final.pth").is_file()
    assert folder.name == f"fold_{fold}"
    if name == "another trainer":
        assert folder.parent.name.startswith("nnUNetTrainerDA5Federated__")
    if name == "16 bits":
        content = load_history(folder)
        assert content["rounds"][0]["bytes_up"] / 3 <= 1.01 * 2 * content["parameters"]
    if name == "reset momentum":
        plans = json.loads((folder.parent / "plans.json").read_text())
        assert plans["configurations"]["2d"]["batch_size"] == 2


@pytest.mark.slow
def test_3d_runs(dataset_3d: str, train: Train) -> None:
    fold = train(dataset_3d, "3d_fullres", 0, "--rounds", 1, "--sites", 2)
    assert load_history(fold)["rounds"][0]["dice"] is not None


@pytest.mark.slow
def test_regions_with_an_ignore_label(nnunet_folders: Path, train: Train) -> None:
    labels = {"background": 0, "both": [1, 2], "two": [2], "ignore": 3}
    write_dataset(nnunet_folders / "raw", "Dataset903_Regions", (32, 32), labels=labels, ignore=3)
    plan_and_preprocess(903, ["2d"])
    fold = train("903", "2d", 0, "--rounds", 1, "--sites", 2)
    assert len(load_history(fold)["rounds"][0]["dice_per_class"]) == 2


@pytest.mark.slow
def test_resenc_plans(dataset_2d: str, train: Train) -> None:
    plan_and_preprocess(int(dataset_2d), ["2d"], "nnUNetPlannerResEncM")
    fold = train(dataset_2d, "2d", 0, "-p", "nnUNetResEncUNetMPlans", "--rounds", 1)
    assert (fold / "checkpoint_final.pth").is_file()


@pytest.mark.slow
def test_the_cascade_trains_on_the_federations_low_resolution(
    nnunet_folders: Path, train: Train
) -> None:
    write_dataset(nnunet_folders / "raw", "Dataset907_Cascade", (24, 24, 24), cases=4)
    plan_and_preprocess(907, ["3d_fullres"])
    plans_file = nnunet_folders / "preprocessed" / "Dataset907_Cascade" / "nnUNetPlans.json"
    plans = json.loads(plans_file.read_text())
    # as nnU-Net's planner writes them where images are large
    plans["configurations"] |= {
        "3d_lowres": {
            "inherits_from": "3d_fullres",
            "data_identifier": "nnUNetPlans_3d_lowres",
            "spacing": [1.5, 1.5, 1.5],
            "patch_size": [16, 16, 16],
            "next_stage": "3d_cascade_fullres",
        },
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    plans_file.write_text(json.dumps(plans))
    preprocess([907], "nnUNetPlans", ["3d_lowres"], [1])

    low = train("907", "3d_lowres", "all", "--rounds", 1, "--sites", 2)
    exported = low.parent / "predicted_next_stage" / "3d_cascade_fullres"
    assert len(list(exported.iterdir())) == 4

    train("907", "3d_cascade_fullres", "all", "--rounds", 1, "--sites", 2)
    cascade = next(low.parents[1].glob("*__3d_cascade_fullres/fold_all"))
    assert (cascade / "validation" / "summary.json").is_file()


@pytest.mark.slow
def test_sites_that_are_datasets(
    dataset_2d: str, nnunet_folders: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(nnunet_folders / "raw", "Dataset904_Second", (32, 32), cases=10)
    plan_and_preprocess(904, ["2d"])
    second = nnunet_folders / "preprocessed" / "Dataset904_Second"
    plans = json.loads((second.parent / "Dataset901_Balls/nnUNetPlans.json").read_text())
    plans["dataset_name"] = "Dataset904_Second"
    (second / "nnUNetPlans.json").write_text(json.dumps(plans))
    short = ["--iterations-per-epoch", "2", "--val-iterations", "2", "-device", "cpu", "--quiet"]
    main(["--site-datasets", dataset_2d, "904", "2d", "0", "--rounds", "1", *short])
    fold = next(results.glob("Dataset901_Balls/*/fold_0"))
    assert sorted(load_history(fold)["sites"]) == ["Dataset901_Balls", "Dataset904_Second"]
    cases = json.loads((fold / "validation/summary.json").read_text())["metric_per_case"]
    assert len(cases) == 3 + 2
    assert [path.name for path in results.iterdir()] == ["Dataset901_Balls"]
    del monkeypatch


class FailsOnce(Observer):
    """Breaks the second site in the middle of the second round."""

    def __init__(self) -> None:
        self.starts = 0
        self.records: list[RoundRecord] = []

    def site_started(self, site: str, iterations: int) -> None:
        del site, iterations
        self.starts += 1

    def iteration_done(self) -> None:
        if self.starts == 4:
            self.starts += 1
            raise OSError("disk gone")

    def round_finished(self, record: RoundRecord) -> None:
        self.records.append(record)


@pytest.mark.slow
def test_a_site_that_failed_comes_back(dataset_2d: str, results: Path) -> None:
    del results
    options = {"sites": 2, "method": "iid", "rounds": 3, "min_replies": 1}
    options |= {"iterations_per_epoch": 2, "val_iterations": 2}
    run = a_run(dataset_2d, **options)
    observer = FailsOnce()
    fold = launch(run, prepare(run), observer=observer)
    assert [record.failed for record in observer.records] == [
        {},
        {"site_02": "OSError: disk gone"},
        {},
    ]
    assert [sorted(record.sites) for record in observer.records][1:] == [
        ["site_01"],
        ["site_01", "site_02"],
    ]
    assert (fold / "checkpoint_final.pth").is_file()


def test_a_corrupted_state_is_refused(
    dataset_2d: str, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    fold = train(dataset_2d, "2d", 0, "--rounds", 1)
    state = fold / "federation" / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(SystemExit) as exit_:
        train(dataset_2d, "2d", 0, "--c")
    assert exit_.value.code == 2
    assert "state.pt cannot be read" in capsys.readouterr().err


@pytest.mark.slow
def test_stock_train_command_runs_the_federation(
    dataset_2d: str, results: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "federation.toml"
    settings.write_text("rounds = 1\niterations_per_epoch = 2\nval_iterations = 2\nsites = 2\n")
    environment = {
        **os.environ,
        "nnUNet_extTrainer": os.pathsep.join(trainer_folders()),
        "nnUNet_federated_settings": str(settings),
        "nnUNet_mlflow_enabled": "1",
    }
    stock = "from nnunetv2.run.run_training import run_training_entry as run; run()"
    argv = [dataset_2d, "2d", "0", "-tr", "nnUNetTrainerFederated", "-device", "cpu"]
    subprocess.run([sys.executable, "-c", stock, *argv], env=environment, check=True)
    fold = next(results.glob("*/*/fold_0"))
    assert len(load_history(fold)["sites"]) == 2
    assert (fold / "validation" / "summary.json").is_file()
    client = MlflowClient(tracking_uri=f"sqlite:///{results / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("nnunet").experiment_id])
    assert run.info.status == "FINISHED"
    assert "final_val/foreground_dice" in run.data.metrics


@pytest.fixture
def python_without_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A virtual environment that has nnunetv2 and not this package."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site_packages = tmp_path / "venv" / "lib" / version / "site-packages"
    # a path file inside the other environment, such as an editable install, is not followed
    (site_packages / "nnunetv2.pth").write_text(sysconfig.get_path("purelib"))
    probe = "import importlib.util as u; print(u.find_spec('nnunetv2_federated'))"
    monkeypatch.delenv("PYTHONPATH", raising=False)  # Flower's simulation leaves one behind
    found = subprocess.run(
        [python, "-c", probe], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    if found.stdout.strip() != "None":
        pytest.skip("this package is not an editable install: it cannot be hidden")
    return str(python)


@pytest.mark.slow
def test_stock_predict_needs_nothing_of_ours(
    dataset_2d: str, nnunet_folders: Path, train: Train, python_without_us: str, tmp_path: Path
) -> None:
    train(dataset_2d, "2d", 0, "--rounds", 1)
    images = nnunet_folders / "raw" / "Dataset901_Balls" / "imagesTr"
    environment = {k: v for k, v in os.environ.items() if k != "nnUNet_extTrainer"}
    predict = "from nnunetv2.inference.predict_from_raw_data import predict_entry_point as p; p()"
    argv = ["-i", str(images), "-o", str(tmp_path / "out"), "-d", dataset_2d, "-c", "2d"]
    argv += ["-f", "0", "-tr", "nnUNetTrainerFederated", "-device", "cpu", "-npp", "1", "-nps", "1"]
    subprocess.run(
        [python_without_us, "-c", predict, *argv], env=environment, cwd=tmp_path, check=True
    )
    assert len(list((tmp_path / "out").glob("case_*.png"))) == 12


def test_joined_summaries_average_over_cases() -> None:
    def summary(*dice: float) -> dict:
        return {
            "mean": {"1": {"Dice": 0.0}},
            "metric_per_case": [{"metrics": {"1": {"Dice": d}}} for d in dice],
        }

    joined = join_summaries([summary(0.9, 0.6), summary(0.3)])
    assert joined["mean"]["1"]["Dice"] == pytest.approx(0.6)
    assert joined["foreground_mean"]["Dice"] == pytest.approx(0.6)
    assert len(joined["metric_per_case"]) == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_site_whose_augmentation_worker_was_killed_is_built_anew(
    dataset_2d: str, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round fails with an error; the next goes on with the momentum of the last good one."""
    del results
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    options = {"sites": 2, "rounds": 3, "iterations_per_epoch": 12, "val_iterations": 1}
    run = a_run(dataset_2d, **options)
    folder = prepare(run)
    pool = SitePool()
    try:
        site = pool.get(run, 0, folder)
        weights, _ = site.train(TrainTask(0, 0.01, 1, 0), to_vector(site.trainer.network))
        workers = site.trainer.dataloader_train._processes
        assert len(workers) == 2
        workers[0].kill()
        with pytest.raises(RuntimeError, match="workers are no longer alive"):
            site.train(TrainTask(1, 0.01, 1, 0), weights)

        again = pool.get(run, 0, folder)
        assert again is not site
        again.train(TrainTask(1, 0.01, 1, 0), weights)
        state = again.trainer.optimizer.state_dict()["state"]
        assert all("momentum_buffer" in entry for entry in state.values())
        assert again.trainer.current_epoch == 2
    finally:
        pool.close()


def test_a_run_that_its_bound_ended_goes_on_with_another(
    dataset_2d: str, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        train(dataset_2d, "2d", 0, "--rounds", 2, "--max-update-norm", "1e-6")
    error = capsys.readouterr().err
    assert exit_.value.code == 1
    assert "0 of 3 sites sent usable weights" in error
    assert "site_02: its update has a norm of" in error
    assert "at most 1e-06 is allowed by --max-update-norm 1e-06" in error
    fold = train(dataset_2d, "2d", 0, "--c", "--max-update-norm", "auto")
    assert load_history(fold)["settings"]["max_update_norm"] == "auto"
    assert len(load_history(fold)["rounds"]) == 2
