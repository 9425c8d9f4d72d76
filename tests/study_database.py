"""What a study of a tuning keeps, for tests that compare two of them."""

from __future__ import annotations

from pathlib import Path

from nnunetv2_federated.experiment.tune_storage import open_storage


def trials_of(study: Path) -> list[tuple[object, ...]]:
    """What a study keeps of its trials, but for when that was."""
    storage = open_storage(f"sqlite:///{study / 'study.db'}")
    (found,) = storage.get_all_studies()
    return [
        (t.number, t.state, t.params, t.intermediate_values, t.values, t.user_attrs)
        for t in storage.get_all_trials(found._study_id)
    ]
