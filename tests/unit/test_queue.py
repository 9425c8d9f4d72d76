"""Queues of trainings: their names, what is approved of them, and what they may cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nnunetv2_federated.experiment.choices import TrainChoices
from nnunetv2_federated.experiment.side_by_side import share_of_machine
from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.proposals import Proposal
from nnunetv2_federated.federation.queue import describe_queue
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.federation.settings import FederationSettings

QUEUE: dict[str, list[Any]] = {"2d": [0, 1], "3d_fullres": ["all"]}


def proposal(**changes: Any) -> Proposal:
    content: dict[str, Any] = {
        "run_id": "abc.2d.1",
        "dataset": "Dataset901_Balls",
        "configuration": "2d",
        "fold": 1,
        "queue": QUEUE,
        "trainer": "nnUNetTrainer",
        "plans_name": "nnUNetPlans",
        "plans_hash": "0" * 64,
        "site_index": 0,
        "settings": {},
    }
    return Proposal(**content | changes)


def test_an_approval_is_of_the_whole_queue_and_of_no_other() -> None:
    approved = proposal().approval()
    last = {"configuration": "3d_fullres", "fold": "all", "run_id": "abc.3d_fullres.all"}
    assert proposal(**last).approval() == approved
    assert proposal(queue={"2d": [0, 1]}).approval() != approved
    assert proposal(queue={**QUEUE, "2d": [0, 1, 2]}).approval() != approved


def test_the_trainings_of_a_queue_know_each_other_by_their_identifiers() -> None:
    assert proposal().run_ids == ["abc.2d.0", "abc.2d.1", "abc.3d_fullres.all"]
    own = proposal(run_id="abc", queue={"2d": [1]})
    assert own.run_ids == ["abc"]
    assert own.count == 1


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"fold": 3}, "2d fold 3 is not in the queue"),
        ({"configuration": "3d_lowres"}, "3d_lowres fold 1 is not in the queue"),
        ({"queue": {"2d": [1, 1]}}, "one of them twice"),
        ({"queue": {}}, "at least 1 item"),
        ({"queue": {"2d": []}}, "at least 1 item"),
        ({"queue": {"../2d": [1]}}, "is not a name"),
        ({"queue": {"2d": [1, -1]}}, "give a number such as 0"),
        ({"queue": {"2d": list(range(101))}}, "at most 100 items"),
        ({"run_id": "abc.2d.0"}, "run abc.2d.0 is not of 2d fold 1"),
    ],
)
def test_a_queue_that_does_not_fit_its_training_is_refused(
    changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        proposal(**changes)
    whole = proposal().to_json()
    for name, value in changes.items():  # as it comes over a network
        with pytest.raises(SiteError, match="not a valid Proposal"):
            Proposal.from_json(_with(whole, name, value))


def _with(text: str, name: str, value: object) -> str:
    import json  # noqa: PLC0415

    return json.dumps(json.loads(text) | {name: value})


def test_a_queue_survives_run_json() -> None:
    run = Run(
        "Dataset901_Balls", "2d", 1, "nnUNetTrainer", "nnUNetPlans", "cpu", FederationSettings(), ()
    )
    assert dict(run.trainings) == {"2d": (1,)}
    queued = replace(run, queue={"2d": (0, 1), "3d_fullres": ("all",)})
    assert Run.from_json(queued.to_json()) == queued
    assert describe_queue(queued.queue) == "2d, folds 0 1; 3d_fullres, fold all"
    with pytest.raises(SettingsError, match="2d fold 1 is not in the queue"):
        replace(run, queue={"2d": (0,)})


@pytest.mark.parametrize(
    ("chosen", "text"),
    [
        ({"configurations": ["2d"]}, "-c without -f: give both"),
        ({"folds": [0]}, "-f without -c: give both"),
        ({"configurations": ["2d"], "folds": [1, 1]}, "-f 1 1: name each once"),
        ({"configurations": [], "folds": [1]}, "-c : name each once, and at least one"),
        ({"configurations": ["2d"], "folds": [1.5]}, "fold 1.5: give a number"),
        ({"parallel": 2}, "--parallel 2: is for several trainings"),
        ({"rounds": 0}, "--rounds 0"),
        ({"dp_epsilon": 1.0, "dp_noise": 1.0}, "--dp-epsilon 1 --dp-noise 1"),
    ],
)
def test_choices_of_a_queue_that_contradict_are_refused(chosen: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        TrainChoices(dataset="901", configuration="2d", fold=0, **chosen)


def test_trainings_at_a_time_take_gpus_in_turn_and_share_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    chosen = [share_of_machine("cuda", slot, 3)["CUDA_VISIBLE_DEVICES"] for slot in range(3)]
    assert chosen == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert share_of_machine("cuda", 1, 2) == {"CUDA_VISIBLE_DEVICES": "7"}

    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert share_of_machine("cpu", 0, 3) == {"OMP_NUM_THREADS": "2"}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert share_of_machine("cpu", 0, 3) == {}
