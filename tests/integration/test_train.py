"""A training as a notebook calls it: result, interruption, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from helpers import a_run

from nnunetv2_federated.experiment.train import evaluate, train
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.history import RoundRecord
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.run import Run

SHORT = {"sites": 2, "rounds": 2, "iterations_per_epoch": 1, "val_iterations": 1}


class Interrupts(Observer):
    """Presses Ctrl-C after the first round."""

    def __init__(self) -> None:
        self.prepared: list[Path] = []

    def run_prepared(self, run: Run, folder: Path) -> None:
        del run
        self.prepared.append(folder)

    def round_finished(self, record: RoundRecord) -> None:
        assert record.round == 0
        raise KeyboardInterrupt


def test_an_interrupted_training_continues_to_the_same_result(
    dataset_2d: str, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer = Interrupts()
    run = a_run(dataset_2d, **SHORT)
    with pytest.raises(KeyboardInterrupt):
        train(run, observer=observer)
    assert observer.prepared[0].parent.parent.parent.parent == results

    with pytest.raises(SettingsError, match=r"the run to continue in .* has other settings"):
        train(a_run(dataset_2d, **{**SHORT, "rounds": 3}), resume=True)
    resumed = train(run, resume=True)
    assert resumed.folder == observer.prepared[0].parent
    assert [record.round for record in resumed.history.rounds] == [0, 1]
    assert resumed.curves.stat().st_size > 1000

    monkeypatch.setenv("nnUNet_results", str(tmp_path / "undisturbed"))
    undisturbed = train(run)
    assert undisturbed.folder != resumed.folder
    assert resumed.headline == undisturbed.headline
    assert resumed.headline is not None
    assert resumed.headline.metric == "Dice"
    losses = [[r.loss for r in model.history.rounds] for model in (resumed, undisturbed)]
    assert losses[0] == losses[1]
    assert evaluate(run).headline == undisturbed.headline


def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    dataset_2d: str, results: Path
) -> None:
    run = a_run(dataset_2d, **SHORT)
    with pytest.raises(SettingsError, match="no earlier run"):
        train(run, resume=True)
    with pytest.raises(SettingsError, match=r"checkpoint_final\.pth does not exist"):
        evaluate(run)
    remote = dataclasses.replace(run, sites=(), remote_sites=("bern", "lyon"), run_id="1")
    with pytest.raises(SettingsError, match="it has 2 of them and no server"):
        train(remote)
    assert not results.exists()
