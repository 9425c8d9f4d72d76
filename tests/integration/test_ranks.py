"""Sites that several processes train together: two of them here, on the CPU, by gloo."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import a_run, assert_same, load_weights

from nnunetv2_federated.federation.errors import RoundError, SiteError
from nnunetv2_federated.federation.messages import TrainTask
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.flower.launch import launch, prepare
from nnunetv2_federated.nnunet.training.global_model import GlobalModel
from nnunetv2_federated.nnunet.training.ranked_site import RankedSite
from nnunetv2_federated.nnunet.training.site import Site

TRAINER = """
    import os
    from pathlib import Path

    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel


    class nnUNetTrainerOnCPU(nnUNetTrainer):
        \"\"\"nnU-Net's, whose groups are for CUDA, with a group on the CPU.\"\"\"

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.device = torch.device("cpu")
            self.grad_scaler = None

        def initialize(self):
            grouped, self.is_ddp = self.is_ddp, False
            super().initialize()
            self.is_ddp = grouped
            if grouped:
                self._set_batch_size_and_oversample()
                self.network = DistributedDataParallel(self.network)
                self.loss = self._build_loss()

        def on_epoch_end(self):
            super().on_epoch_end()
            weights = torch.cat([p.detach().reshape(-1) for p in self.network.parameters()])
            torch.save(weights, Path(os.environ["RANKS_FOLDER"], f"weights_{self.local_rank}.pt"))


    class FixedBatches:
        \"\"\"The same batches in every training; each rank takes its part.\"\"\"

        def __init__(self, trainer, seed):
            self.trainer, self.random = trainer, torch.Generator().manual_seed(seed)

        def __next__(self):
            trainer = self.trainer
            whole = trainer.configuration_manager.batch_size
            size = trainer.configuration_manager.patch_size
            data = torch.randn(whole, trainer.num_input_channels, *size, generator=self.random)
            target = torch.randint(0, 3, (whole, 1, *size), generator=self.random)
            first = sum(trainer.batch_size for _ in range(trainer.local_rank))
            part = slice(first, first + trainer.batch_size)
            return {"data": data[part], "target": target[part].to(torch.int16)}


    class nnUNetTrainerOfFixedBatches(nnUNetTrainerOnCPU):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.enable_deep_supervision = False  # DDP gives the lowest output another weight

        def get_dataloaders(self):
            return FixedBatches(self, 1), FixedBatches(self, 2)
"""

SHORT: dict[str, Any] = {"sites": 2, "rounds": 3, "iterations_per_epoch": 2, "val_iterations": 2}


@pytest.fixture(autouse=True)
def ranks_folder(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A trainer for the CPU, and a folder for its weights; no process is left at the end."""
    del results
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "on_cpu.py").write_text(textwrap.dedent(TRAINER))
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "trainers"))
    monkeypatch.setenv("RANKS_FOLDER", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield tmp_path
    assert ranks() == []
    assert list(tmp_path.glob("nnunetv2-federated-*")) == []


def ranks() -> list[Any]:
    """The processes that train a site at present, by rank."""
    mine = multiprocessing.active_children()
    return sorted((p for p in mine if p.name.startswith("rank")), key=lambda p: p.name)


def ranked(dataset: str, trainer: str = "nnUNetTrainerOnCPU", **chosen: Any) -> Run:
    """Resolve a run, for two processes: the check for GPUs would refuse them here."""
    return dataclasses.replace(a_run(dataset, trainer=trainer, **SHORT | chosen), num_gpus=2)


def test_two_ranks_train_as_one_process_does(dataset_2d: str, ranks_folder: Path) -> None:
    """Gradients of halves of the batch are averaged; voxels of both halves are counted."""
    fixed = {"trainer": "nnUNetTrainerOfFixedBatches", "batch_size": 4, "strategy": "fedprox"}
    two = ranked(dataset_2d, **fixed)
    one = dataclasses.replace(two, num_gpus=1)
    folder = prepare(one)
    weights = GlobalModel(one).vector
    task = TrainTask(0, 0.01, 2, 2, proximal_mu=0.1)

    alone = Site(one, 0, folder / "one", Observer())
    expected, report_of_one = alone.train(task, weights)
    alone.close()
    together = RankedSite(two, 0, folder / "two", Observer())
    try:
        trained, report = together.train(task, weights)
        validation = together.evaluate(1, weights)
    finally:
        together.close()

    assert not np.allclose(trained, weights, atol=1e-4)
    np.testing.assert_allclose(trained, expected, atol=2e-6)
    assert report.train_loss == pytest.approx(report_of_one.train_loss, rel=1e-5)
    assert report.received is not None
    assert report_of_one.received is not None
    assert report.received.tp == report_of_one.received.tp  # of the same weights and images
    assert report.received.fp == report_of_one.received.fp
    assert report.received.iterations == 2
    assert report.received.loss == pytest.approx(report_of_one.received.loss, rel=1e-5)
    assert sum(validation.tp) + sum(validation.fn) > 0
    del ranks_folder
