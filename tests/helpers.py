"""What tests of several modules read from a trained fold, and compare."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nnunetv2_federated.experiment.choices import TrainChoices
from nnunetv2_federated.experiment.resolve import resolve
from nnunetv2_federated.federation.run import Run

Train = Callable[..., Path]
"""Trains with the flags it is given; returns the fold's folder."""

Weights = dict[str, torch.Tensor]
"""Tensors of a network by their names in its ``state_dict``."""


def a_run(dataset: str, **chosen: Any) -> Run:
    """Resolve what a test chooses to a run of fold 0 of ``2d`` on the CPU."""
    target = {"dataset": dataset, "configuration": "2d", "fold": 0, "device": "cpu"}
    return resolve(TrainChoices(**{**target, **chosen}))


def load_weights(fold: Path) -> Weights:
    """Load the weights of a fold's final checkpoint."""
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    weights: Weights = checkpoint["network_weights"]
    return weights


def load_history(fold: Path) -> dict[str, Any]:
    """Load the ``federation.json`` of a fold."""
    history: dict[str, Any] = json.loads((fold / "federation.json").read_text())
    return history


def find_different(ours: Weights, theirs: Weights) -> list[str]:
    """Return the names of the tensors that are not equal bit for bit."""
    assert ours.keys() == theirs.keys()
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


def assert_same(ours: Weights, theirs: Weights) -> None:
    """Assert that two networks have the same weights, bit for bit."""
    assert find_different(ours, theirs) == []
