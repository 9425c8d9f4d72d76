"""Sites that several processes train together: two of them here, on the CPU, by gloo."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
import signal
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Command
from consortium import wait_for
from helpers import a_run, assert_same, load_weights

from nnunetv2_federated.cli.site_choices import SiteCommandChoices
from nnunetv2_federated.cli.site_process import check as check_site_command
from nnunetv2_federated.cli.site_process import take_part
from nnunetv2_federated.cli.train import main
from nnunetv2_federated.federation.errors import RoundError, SettingsError, SiteError
from nnunetv2_federated.federation.messages import TrainTask
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.proposals import Proposal
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.site.guarded_site import GuardedSite
from nnunetv2_federated.flower.deployment.site.local_site import LocalSite
from nnunetv2_federated.flower.deployment.site.site_file import SiteSettingsFile
from nnunetv2_federated.flower.deployment.site.trial import PreflightTarget, train_one_iteration
from nnunetv2_federated.flower.launch import check, launch, prepare
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.training import torch_file
from nnunetv2_federated.nnunet.training.global_model import GlobalModel
from nnunetv2_federated.nnunet.training.ranked_site import RankedSite
from nnunetv2_federated.nnunet.training.ranks import check_divisible, check_gpus
from nnunetv2_federated.nnunet.training.site import Site

TRAINER = """
    import os
    import time
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


    class nnUNetTrainerOfTwoClocks(nnUNetTrainerOnCPU):
        \"\"\"Where rank 0 has time left, rank 1 has none, and the other way round.\"\"\"

        def on_train_epoch_start(self):
            super().on_train_epoch_start()
            if self.local_rank == 1 and self._steps._end is not None:
                self._steps._end = 2 * time.monotonic() - self._steps._end


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

SHORT: dict[str, Any] = {
    "sites": 2,
    "method": "iid",
    "rounds": 2,
    "iterations_per_epoch": 2,
    "val_iterations": 2,
}


TASK = TrainTask(0, 0.01, 1, 0)


@pytest.fixture(autouse=True)
def ranks_folder(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A trainer for the CPU, and a folder for its weights; no process and no file is left."""
    del results
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "on_cpu.py").write_text(textwrap.dedent(TRAINER))
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "trainers"))
    monkeypatch.setenv("RANKS_FOLDER", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    too_long = threading.Timer(120, kill)
    too_long.start()
    yield tmp_path
    too_long.cancel()
    assert ranks() == []
    assert list(tmp_path.glob("nnunetv2-federated-*")) == []


def ranks() -> list[Any]:
    """The processes that train sites at present."""
    return [p for p in multiprocessing.active_children() if ", rank " in p.name]


def kill(name: str = "") -> None:
    """End ranks by what is in their names, as the kernel does where memory is short."""
    for process in [p for p in ranks() if name in p.name]:
        os.kill(process.pid, signal.SIGKILL)


def ranked(dataset: str, trainer: str = "nnUNetTrainerOnCPU", **chosen: Any) -> Run:
    """Resolve a run, for two processes: the check for GPUs would refuse them here."""
    return dataclasses.replace(a_run(dataset, trainer=trainer, **SHORT | chosen), num_gpus=2)


@pytest.mark.slow(20)
def test_two_ranks_train_as_one_process_does(dataset_2d: str, ranks_folder: Path) -> None:
    """Gradients of halves of the batch are averaged; voxels of both halves are counted."""
    fixed = {
        "batch_size": 4,
        "strategy": "fedprox",
        "personal": "finetune",
        "personal_iterations": 2,
    }
    two = ranked(dataset_2d, "nnUNetTrainerOfFixedBatches", **fixed)
    assert two.sites[0].validation_cases
    one = dataclasses.replace(two, num_gpus=1)
    first = prepare(one) / "one"
    second = first.with_name("two")
    weights = GlobalModel(one).vector
    task = TrainTask(0, 0.01, 2, 2, proximal_mu=0.1)

    alone, together = Site(one, 0, first, Observer()), RankedSite(two, 0, second, Observer())
    try:
        expected, report_of_one = alone.train(task, weights)
        trained, report = together.train(task, weights)
        of_ranks = [torch.load(ranks_folder / f"weights_{rank}.pt") for rank in (0, 1)]
        assert together.evaluate(1, trained).tp == alone.evaluate(1, trained).tp
        assert together.validate_fully(trained) == alone.validate_fully(trained)
        assert together.describe() == alone.describe()
        assert together.personalise(trained) == alone.personalise(trained)
        assert (together.personal_folder / "checkpoint_final.pth").is_file()
        assert ranks() == []  # they had the GPUs
    finally:
        alone.close()
        together.close()

    assert not np.allclose(trained, weights, atol=1e-4)
    np.testing.assert_allclose(trained, expected, atol=2e-6)
    assert report.train_loss == pytest.approx(report_of_one.train_loss, rel=1e-5)
    assert report.validation.iterations == 2
    assert report.received is not None
    assert report_of_one.received is not None
    assert report.received.tp == report_of_one.received.tp  # of the same weights and images
    assert report.received.fp == report_of_one.received.fp
    assert report.received.loss == pytest.approx(report_of_one.received.loss, rel=1e-5)
    assert torch.equal(*of_ranks)

    # each goes on where the other stopped, as on a machine that has got or lost a GPU
    alone, together = Site(one, 0, second, Observer()), RankedSite(two, 0, first, Observer())
    next_round = TrainTask(1, 0.005, 1, 0, proximal_mu=0.1)  # all parameters have a gradient
    try:
        after = [site.train(next_round, trained)[0] for site in (alone, together)]
    finally:
        alone.close()
        together.close()
    np.testing.assert_allclose(*after, atol=2e-6)


class Killer(Observer):
    """Ends rank 1 in the middle of the second round's second site."""

    def __init__(self) -> None:
        self.turns: list[str] = []

    def site_started(self, site: str, iterations: int) -> None:
        del iterations
        self.turns.append(site)

    def iteration_done(self) -> None:
        if len(self.turns) == 4:
            kill("site_02, rank 1 of 2")


@pytest.mark.slow(30)
def test_a_rank_that_is_killed_is_an_error_and_the_training_goes_on_bit_for_bit(
    dataset_2d: str, results: Path
) -> None:
    run = ranked(dataset_2d)
    undisturbed = load_weights(launch(run, prepare(run)))
    shutil.rmtree(results)

    folder = prepare(run)
    with pytest.raises(RoundError, match=r"site_02: .*has ended \(SIGKILL\).*asked for again"):
        launch(run, folder, observer=Killer())
    assert ranks() == []
    states = folder / "sites" / "site_02"
    assert sorted(p.name for p in states.glob("after_round_*")) == [
        "after_round_-1.pt",
        "after_round_0.pt",
    ]
    assert len(torch_file.load(states / "after_round_0.pt")["randomness"]) == 2

    assert_same(load_weights(launch(run, prepare(run, resume=True))), undisturbed)


def test_time_is_over_for_all_ranks_when_it_is_for_the_first(dataset_2d: str) -> None:
    """Ranks that decided by their own clocks would wait for each other's gradients for ever."""
    run = ranked(dataset_2d, "nnUNetTrainerOfTwoClocks")
    folder = prepare(run)
    site = RankedSite(run, 0, folder, Observer())
    try:
        weights = GlobalModel(run).vector
        enough = site.train(dataclasses.replace(TASK, seconds=1000.0), weights)[1]
        none = site.train(dataclasses.replace(TASK, server_round=1, seconds=1e-6), weights)[1]
    finally:
        site.close()
    assert enough.completed == 1.0
    assert none.completed == 0.5  # one of two iterations is always done


def test_a_sites_check_trains_one_iteration_on_all_gpus(dataset_2d: str, results: Path) -> None:
    trainer = "nnUNetTrainerOnCPU"
    target = PreflightTarget(dataset_2d, "nnUNetPlans", "2d", 0, trainer, "cpu", num_gpus=2)
    seen = train_one_iteration(load_dataset(dataset_2d), target)
    assert "; on 2 GPUs together: loss " in seen
    assert not [path for path in results.rglob("*") if path.is_file()]


SCRIPT = """
import os, signal, sys, tempfile
from pathlib import Path

from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.run import read_run
from nnunetv2_federated.nnunet.training.ranked_site import RankedSite

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    tempfile.tempdir = str(Path(sys.argv[2]).parent)
    site = RankedSite(read_run(folder), 0, folder, Observer())
    Path(sys.argv[2]).write_text(" ".join(map(str, site.group.pids)))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_ranks_end_with_the_command_that_is_killed(dataset_2d: str, tmp_path: Path) -> None:
    folder = prepare(ranked(dataset_2d))
    script, found = tmp_path / "script.py", tmp_path / "pids"
    script.write_text(SCRIPT)
    command = Command([script, folder, found], os.environ, tmp_path, tmp_path / "out")
    assert command.wait(120) == -signal.SIGKILL, (tmp_path / "out").read_text()
    pids = [int(pid) for pid in found.read_text().split()]
    assert len(pids) == 2
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "end", 20)
    for left in tmp_path.glob("nnunetv2-federated-*"):  # the folder of who was killed
        shutil.rmtree(left)


class Withdrawing(Observer):
    def iteration_done(self) -> None:
        raise SiteError("withdrawn")


@pytest.mark.parametrize("what", ["an approval withdrawn", "a loss that is not finite"])
def test_an_error_of_the_site_is_raised_as_it_is_and_ends_the_ranks(
    what: str, dataset_2d: str
) -> None:
    run = ranked(dataset_2d)
    withdrawn = what.startswith("an approval")
    site = RankedSite(run, 0, prepare(run), Withdrawing() if withdrawn else Observer())
    weights = GlobalModel(run).vector
    words = "withdrawn" if withdrawn else "its training loss is nan"
    with pytest.raises(SiteError, match=words) as error:
        site.train(TASK, weights if withdrawn else np.full_like(weights, np.nan))
    assert "\n" not in str(error.value)
    if not withdrawn:  # where it was raised is for the site's log
        assert "in train" in error.value.__notes__[0]
    assert site.interrupted
    assert ranks() == []
    site.close()


def test_a_hospitals_ranks_are_started_anew_for_the_next_question(
    dataset_2d: str, tmp_path: Path
) -> None:
    here = LocalSite(
        "bern", dataset_2d, tmp_path / "work", "cpu", allowed_modules=("on_cpu",), num_gpus=2
    )
    guarded = GuardedSite(here)
    settings = FederationSettings(rounds=2, iterations_per_epoch=2, val_iterations=1)
    content = {
        "run_id": "first",
        "dataset": "Dataset777_OfTheServer",
        "configuration": "2d",
        "fold": 0,
        "trainer": "nnUNetTrainerOnCPU",
        "plans_name": "nnUNetPlans",
        "plans_hash": load_dataset(dataset_2d).plans_hash,
        "site_index": 0,
        "settings": dataclasses.asdict(settings),
        "queue": {"2d": [0]},
    }
    asked = Proposal(**content)
    guarded.consent.approve(asked.approval(), "test")
    try:
        guarded.membership.join(asked)
        weights = GlobalModel(guarded.membership.site().run).vector
        first = guarded.membership.site()
        kill("bern, rank 0 of 2")
        with pytest.raises(SiteError, match=r"site bern: one of the processes .*has ended"):
            first.train(TASK, weights)
        second = guarded.membership.site()
        assert second is not first
        assert second.train(TASK, weights)[1].training_cases == 9
    finally:
        guarded.close()


def test_what_cannot_be_divided_over_gpus_is_refused_before_training(
    dataset_2d: str, results: Path
) -> None:
    with pytest.raises(SettingsError, match=r"-num_gpus 2 with a batch size of 1: .*at most"):
        check(ranked(dataset_2d, batch_size=1))
    with pytest.raises(SettingsError, match="-num_gpus 2 with differential privacy"):
        check(ranked(dataset_2d, "nnUNetTrainer", dp_noise=1.0))
    with pytest.raises(SettingsError, match="-num_gpus 2 with a classifier"):
        check_divisible(2, private=False, segmentation=False)
    assert not results.exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["-device", "cpu"], "-num_gpus 2 with -device cpu: several GPUs are for -device cuda"),
        (["--backend", "ray"], "-num_gpus 2 --backend ray: keep one of the two."),
        (["--prepare-only"], "-num_gpus 2 --prepare-only: keep one of the two."),
        (["--server", "localhost:9092"], "-num_gpus 2 --server: keep one of the two."),
    ],
)
def test_bad_choices_end_with_one_line_and_status_2(
    flags: list[str], words: str, dataset_2d: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([dataset_2d, "2d", "0", "-num_gpus", "2", *flags])
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", [take_part, check_site_command])
def test_a_site_without_the_gpus_is_not_started(
    command: Callable[[SiteSettingsFile, SiteCommandChoices], None], dataset_2d: str, tmp_path: Path
) -> None:
    files = (tmp_path / "ca.crt", tmp_path / "site.key", tmp_path / "coordinator.pub")
    settings = SiteSettingsFile("bern", Address("127.0.0.1", 9), *files, tmp_path / "work")
    choices = SiteCommandChoices(dataset=dataset_2d, device="cpu", num_gpus=2)
    with pytest.raises(SettingsError, match="-num_gpus 2 with -device cpu"):
        command(settings, choices)
    assert not settings.work.exists()


def test_more_gpus_than_there_are_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    check_gpus(2, "cuda")
    with pytest.raises(SettingsError, match=r"-num_gpus 3: 2 can be seen here .*at most 2"):
        check_gpus(3, "cuda")
