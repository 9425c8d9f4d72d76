"""A small study, and what a study keeps, for tests that compare two of them."""

from __future__ import annotations

from pathlib import Path

from nnunetv2_federated.experiment.tune_storage import open_storage

STUDY = """
rounds = 4
iterations_per_epoch = 1
val_iterations = 1
device = "cpu"
reduction = 2
rungs = 2
trials = 3
bracket_size = 3
score_iterations = 6

[search]
initial_lr = {low = 0.001, high = 0.1, log = true}
local_epochs = [1, 2]
strategy = ["fedavg", "fedprox"]

[search.fedprox]
proximal_mu = {low = 0.01, high = 1.0, log = true}
"""
"""Settings of a small tuning, but for its sites."""


def trials_of(study: Path) -> list[tuple[object, ...]]:
    """What a study keeps of its trials, but for when that was."""
    storage = open_storage(f"sqlite:///{study / 'study.db'}")
    (found,) = storage.get_all_studies()
    return [
        (t.number, t.state, t.params, t.intermediate_values, t.values, t.user_attrs)
        for t in storage.get_all_trials(found._study_id)
    ]
