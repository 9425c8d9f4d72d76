"""Tiny datasets, planned and preprocessed once by nnU-Net's own functions."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import commands
import pytest
from small_datasets import FOLDERS, make_stripes, nnunet_in, plan_and_preprocess, write_dataset

os.environ.setdefault("nnUNet_compile", "f")  # nnU-Net's spelling
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["MATPLOTLIBRC"] = str(Path(__file__).with_name("matplotlibrc"))
os.environ["nnUNet_def_n_proc"] = "1"  # noqa: SIM112
os.environ["OMP_NUM_THREADS"] = "1"  # two cores, and several processes that would fight for them
# nnU-Net spawns workers for each step of each dataset, and each would import nnU-Net anew
setattr(multiprocessing, "get_context", commands.get_context)  # noqa: B010  # mypy: overloaded

pytest_plugins = ("conversions", "cls_dataset")
_USUAL_SECONDS = {"slow": 10.0, "deployment": 20.0}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest tests first: many wait, and meanwhile others have the cores."""
    items.sort(key=_seconds, reverse=True)


def _seconds(item: pytest.Item) -> float:
    """Return how long a test takes, as its mark says: ``slow(90)``."""
    for name, usual in _USUAL_SECONDS.items():
        mark = item.get_closest_marker(name)
        if mark is not None:
            return float(mark.args[0]) if mark.args else usual
    return 0.0


Planned = Callable[[str, Callable[[Path], None]], str]
"""Takes a dataset's name and what makes it below a raw folder; returns its id."""


@pytest.fixture(scope="session")
def nnunet_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nnU-Net's three folders, for the whole session."""
    base = tmp_path_factory.mktemp("nnunet")
    for name in FOLDERS:
        (base / name).mkdir()
        os.environ[f"nnUNet_{name}"] = str(base / name)
    return base


@pytest.fixture(scope="session")
def planned(nnunet_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Planned:
    """Make a dataset once for all workers of this session, and give each worker a copy."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "planned"

    def get(name: str, make: Callable[[Path], None]) -> str:
        shared.mkdir(exist_ok=True)
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (shared / name).is_dir():
                unfinished = shared / f"{name}.unfinished"
                with nnunet_in(unfinished):
                    make(unfinished / "raw")
                unfinished.rename(shared / name)
        for folder in ("raw", "preprocessed"):
            shutil.copytree(shared / name / folder / name, nnunet_folders / folder / name)
        return name[7:10]

    return get


@pytest.fixture(scope="session")
def dataset_2d(planned: Planned) -> str:
    """Twelve 32x32 PNG cases with two labels."""

    def make(raw: Path) -> None:
        write_dataset(raw, "Dataset901_Balls", (32, 32))
        plan_and_preprocess(901, ["2d"])

    return planned("Dataset901_Balls", make)


@pytest.fixture(scope="session")
def dataset_3d(planned: Planned) -> str:
    """Eight 24x24x24 NIfTI cases."""

    def make(raw: Path) -> None:
        write_dataset(raw, "Dataset902_Balls3D", (24, 24, 24), cases=8)
        plan_and_preprocess(902, ["3d_fullres"])

    return planned("Dataset902_Balls3D", make)


@pytest.fixture(scope="session")
def dataset_cls(planned: Planned) -> str:
    """Forty 32x36 PNG cases, with bright rows or bright columns, and ten test cases."""
    return planned("Dataset905_Stripes", lambda raw: make_stripes(raw / "Dataset905_Stripes"))


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nnunet_folders: Path) -> Path:
    """Give a test an empty results folder, and the reproducible single-threaded augmentation."""
    del nnunet_folders
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    return tmp_path / "results"


@pytest.fixture
def forked_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the trainings of a comparison or a queue, each of which would import all anew."""
    forks = SimpleNamespace(Popen=commands.start_forked, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr("nnunetv2_federated.experiment.train_process.subprocess", forks)


@pytest.fixture
def train(results: Path) -> Callable[..., Path]:
    """Run ``nnUNetv2_train_federated`` in this process; return the fold's folder."""
    from nnunetv2_federated.cli.train import main  # noqa: PLC0415

    def run(*argv: object) -> Path:
        short = ["--iterations-per-epoch", "2", "--val-iterations", "2", "-device", "cpu"]
        main([*map(str, argv), *short, "--quiet"])
        return next(results.glob("*/*/fold_*"))

    return run
