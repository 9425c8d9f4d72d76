"""Every trainer that nnU-Net ships is federated for a round, or refused in a line that says why."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nnunetv2.training.nnUNetTrainer
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.primus.primus_trainers import AbstractPrimus

from nnunetv2_federated.cli.run import build_run
from nnunetv2_federated.flower.launch import check, launch, prepare
from nnunetv2_federated.training.checkpoint import GlobalModel
from nnunetv2_federated.training.dataset import find_trainer, load_dataset


def shipped() -> dict[str, type]:
    """Classes below ``nnunetv2.training.nnUNetTrainer``, where nnU-Net looks for trainers."""
    found = {}
    package = nnunetv2.training.nnUNetTrainer
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, type) and issubclass(value, nnUNetTrainer):
                found[name] = value
    return found


SHIPPED = shipped()


@pytest.fixture(scope="module")
def tiny_plans(dataset_2d: str) -> str:
    dataset = load_dataset(dataset_2d)
    plans = json.loads(json.dumps(dataset.plans))
    configuration = plans["configurations"]["2d"]
    configuration["batch_size"] = 2
    configuration["architecture"]["arch_kwargs"] |= {
        "n_stages": 3,
        "features_per_stage": [4, 4, 4],
        "kernel_sizes": [[3, 3]] * 3,
        "strides": [[1, 1], [2, 2], [2, 2]],
        "n_conv_per_stage": [1] * 3,
        "n_conv_per_stage_decoder": [1] * 2,
    }
    plans["plans_name"] = "nnUNetTinyPlans"
    (dataset.folder / "nnUNetTinyPlans.json").write_text(json.dumps(plans))
    return "nnUNetTinyPlans"

@pytest.mark.parametrize("name", SHIPPED)
def test_x(name, dataset_2d, tiny_plans, results):
    options = {"trainer": name, "plans": tiny_plans, "sites": 2, "rounds": 1, "iterations_per_epoch": 1, "val_iterations": 1}
    run = build_run(options, dataset_2d, "2d", 0, "cpu")
    check(run)
    launch(run, prepare(run))
