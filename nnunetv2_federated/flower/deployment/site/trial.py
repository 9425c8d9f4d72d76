"""A training of one iteration, to find out what a site would fail at."""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from nnunetv2.paths import nnUNet_results

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.messages import TrainTask
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.run import Run, SiteCases
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.nnunet.data.dataset import Dataset
from nnunetv2_federated.nnunet.data.folds import fold_of_site
from nnunetv2_federated.nnunet.environment import quiet
from nnunetv2_federated.nnunet.training.build_trainer import build_trainer, move_output
from nnunetv2_federated.nnunet.training.ranked_site import RankedSite
from nnunetv2_federated.nnunet.training.weights import to_vector

_GIGABYTE = 2**30


@dataclass(frozen=True)
class PreflightTarget:
    """A training to try; the settings of a federation are not known yet."""

    dataset: str
    plans_name: str
    configuration: str
    fold: int | str
    trainer: str
    device: str
    num_gpus: int = 1


def run_of(dataset: Dataset, target: PreflightTarget) -> Run:
    """Return a run of one iteration, of this site alone."""
    training, validation = fold_of_site(dataset, target.configuration, target.fold)
    return Run(
        dataset=dataset.name,
        configuration=target.configuration,
        fold=target.fold,
        trainer=target.trainer,
        plans_name=target.plans_name,
        device=target.device,
        settings=FederationSettings(rounds=1, iterations_per_epoch=1, val_iterations=1),
        sites=(SiteCases("check", dataset.name, tuple(training), tuple(validation)),),
        num_gpus=target.num_gpus,
    )


def train_one_iteration(dataset: Dataset, target: PreflightTarget) -> str:
    """Train one iteration and leave nothing behind; return what came of it in words."""
    run = run_of(dataset, target)
    training, validation = list(run.sites[0].training_cases), list(run.sites[0].validation_cases)
    folder = Path(nnUNet_results.require()) / ".preflight"
    try:
        with quiet():
            trainer = build_trainer(run, dataset)
            move_output(trainer, folder)
            trainer.disable_checkpointing = True
            trainer.site_cases = (training, validation or training)
            trainer.initialize()
            if target.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            loss = trainer.run_round(1e-6)
            seconds = time.perf_counter() - started
            trainer.close()
            weights = to_vector(trainer.network)
            del trainer
            together = "" if target.num_gpus == 1 else _in_step(run, folder, weights)
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
    seen = f"loss {loss:+.3f}, {seconds:.0f} s with one validation iteration and starting loaders"
    if target.device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory / _GIGABYTE
        used = torch.cuda.max_memory_allocated() / _GIGABYTE
        seen += f", {used:.1f} of {total:.1f} GB of {torch.cuda.get_device_name(0)}"
    return seen + together


def _in_step(run: Run, folder: Path, weights: Vector) -> str:
    """Train one iteration on all GPUs together."""
    started = time.perf_counter()
    site = RankedSite(run, 0, folder, Observer())
    try:
        _, report = site.train(TrainTask(0, 1e-6, 1, 0), weights)
    finally:
        site.close()
    seconds = time.perf_counter() - started
    return f"; on {run.num_gpus} GPUs together: loss {report.train_loss:+.3f}, {seconds:.0f} s"
