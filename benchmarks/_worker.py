"""One measurement in a process of its own: ``_worker.py KIND JSON RESULT_FILE``."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _dataset import NAME, make_dataset
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_federated.federation.aggregation import RunningMean
from nnunetv2_federated.federation.history import RoundRecord
from nnunetv2_federated.federation.messages import SiteDescription, TrainReport, Validation
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.partition import PartitionSettings
from nnunetv2_federated.federation.run import Run, SiteCases
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.flower.in_process import InProcessGrid
from nnunetv2_federated.flower.launch import launch
from nnunetv2_federated.flower.launch import prepare as prepare_run
from nnunetv2_federated.flower.participants import Participants, Requirements
from nnunetv2_federated.flower.records import (
    ARRAYS,
    CONFIG,
    pack_payload,
    pack_weights,
)
from nnunetv2_federated.flower.strategies import build_strategy
from nnunetv2_federated.flower.strategy import PolyLRStrategy
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.data.site_cases import partition_dataset, sites_of_fold
from nnunetv2_federated.nnunet.environment import quiet

FOLD = "all"  # every site then has training cases, however many sites share the dataset

Result = dict[str, Any]


def prepare(cases: int) -> Result:
    with quiet():
        make_dataset(Path(os.environ["nnUNet_raw"]), cases)  # noqa: SIM112  # nnU-Net's spelling
    return {}


@contextlib.contextmanager
def stopwatches() -> Iterator[defaultdict[str, float]]:
    """Add up the seconds in nnU-Net's set-up, end and plots, whoever's trainer calls them.

    Only this benchmark wraps nnU-Net's methods; the package never does.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    wrapped = [
        (nnUNetTrainer, "on_train_start"),
        (nnUNetTrainer, "on_train_end"),
        (MetaLogger, "plot_progress_png"),
    ]
    originals = [getattr(owner, name) for owner, name in wrapped]

    def timed(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: object, **kwargs: object) -> object:
            started = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                seconds[name] += time.perf_counter() - started

        return call

    for (owner, name), original in zip(wrapped, originals, strict=True):
        setattr(owner, name, timed(name, original))
    try:
        yield seconds
    finally:
        for (owner, name), original in zip(wrapped, originals, strict=True):
            setattr(owner, name, original)


def stock(epochs: int, iterations: int, val_iterations: int, device: str) -> Result:
    """Time ``nnUNetTrainer.run_training`` without its set-up and end."""
    torch.backends.cudnn.benchmark = device == "cuda"
    dataset = load_dataset(NAME)
    plans = {**dataset.plans, "continue_training": False}
    with quiet(), stopwatches() as seconds:
        trainer = nnUNetTrainer(plans, "2d", FOLD, dataset.dataset_json, torch.device(device))
        trainer.num_epochs = epochs
        trainer.num_iterations_per_epoch = iterations
        trainer.num_val_iterations_per_epoch = val_iterations
        trainer.initialize()
        started = time.perf_counter()
        trainer.run_training()
        wall = time.perf_counter() - started
    return {
        "seconds": wall - seconds["on_train_start"] - seconds["on_train_end"],
        "plots": seconds["plot_progress_png"],
    }


class _Wall(Observer):
    """From the first site's start to the end of the last round, with all the server writes."""

    started: float | None = None
    ended = 0.0

    def site_started(self, site: str, iterations: int) -> None:
        del site, iterations
        if self.started is None:
            self.started = time.perf_counter()

    def round_finished(self, record: RoundRecord) -> None:
        del record
        self.ended = time.perf_counter()


def federation(sites: int, device: str, settings: dict[str, Any]) -> Result:
    """Run a federation in this process."""
    torch.backends.cudnn.benchmark = device == "cuda"
    dataset = load_dataset(NAME)
    cases, _ = partition_dataset(dataset, "2d", PartitionSettings(sites=sites, method="iid"))
    run = Run(
        dataset=NAME,
        configuration="2d",
        fold=FOLD,
        trainer="nnUNetTrainer",
        plans_name="nnUNetPlans",
        device=device,
        settings=FederationSettings(**settings),
        sites=sites_of_fold(dataset, "2d", FOLD, cases),
    )
    wall = _Wall()
    with stopwatches() as seconds:
        folder = launch(run, prepare_run(run), observer=wall)
    report = json.loads((folder / "federation.json").read_text())
    rounds = report["rounds"]
    setup = seconds["on_train_start"]  # in the first round of each site
    messages = sum(len(record["participants"]) for record in rounds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": sum(record["seconds"]["round"] for record in rounds) - setup,
        "wall": wall.ended - (wall.started or 0.0) - setup,
        "parameters": report["parameters"],
        "bytes_down": sum(record["bytes_down"] for record in rounds) / messages,
        "bytes_up": sum(record["bytes_up"] for record in rounds) / messages,
        "peak_bytes": peak * (1 if sys.platform == "darwin" else 1024),
    }


def aggregation(replies: int, parameters: int) -> Result:
    """Time numpy's sum, the running mean, and all the strategy does with a round's replies.

    All vectors are drawn from two, so that memory stays below 2 GB.
    """
    rng = np.random.default_rng(0)
    base = [rng.standard_normal(parameters, dtype=np.float32) for _ in range(2)]
    total = np.ones(parameters, np.float32)  # ones, not zeros: its pages exist before the clock
    started = time.perf_counter()
    for index in range(replies):
        total += base[index % 2]
    numpy_seconds = time.perf_counter() - started
    del total

    mean = RunningMean()
    started = time.perf_counter()
    for index in range(replies):
        mean.add(base[index % 2], index + 1)
    mean_seconds = time.perf_counter() - started
    del mean

    records = [pack_weights(vector) for vector in base]
    del base
    grid = InProcessGrid(ClientApp(), replies, {})
    sites = {
        node: SiteDescription(f"site_{node:03d}", node, 0, "", "") for node in grid.get_node_ids()
    }
    settings = FederationSettings(rounds=1)
    cases = tuple(SiteCases(site.site, "", ("case",), ()) for site in sites.values())
    run = Run("", "2d", 0, "", "", "cpu", settings, cases)
    participants = Participants(grid, run, Requirements("", ""), Observer())
    participants.sites.update(sites)
    strategy = PolyLRStrategy(
        build_strategy("fedavg", {}), settings, [0.01], participants, streaming=True
    )
    tasks = list(strategy.configure_train(1, records[0], ConfigRecord(), grid))
    nothing = Validation(0, 0.0, [], [], [])

    def answers() -> Iterator[Message]:
        for index, task in enumerate(tasks):
            node = task.metadata.dst_node_id
            report = TrainReport(sites[node].site, node, 0.0, nothing, None, 0.0)
            content = RecordDict(
                {
                    ARRAYS: ArrayRecord(dict(records[index % 2])),
                    CONFIG: pack_payload(report.to_json()),
                }
            )
            yield Message(content, reply_to=task)

    started = time.perf_counter()
    strategy.aggregate_train(1, answers())
    return {
        "numpy": numpy_seconds,
        "running_mean": mean_seconds,
        "strategy": time.perf_counter() - started,
    }


KINDS: dict[str, Callable[..., Result]] = {
    "prepare": prepare,
    "stock": stock,
    "federation": federation,
    "aggregation": aggregation,
}

if __name__ == "__main__":
    kind, arguments, result_file = sys.argv[1:]
    Path(result_file).write_text(json.dumps(KINDS[kind](**json.loads(arguments))))
