"""Private rounds of real trainers on real loaders: 2d, 3d, residual encoders, classifiers."""

from __future__ import annotations

import copy
import itertools
import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from helpers import a_run

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.privacy.constant_scaler import ConstantScaler
from nnunetv2_federated.nnunet.privacy.private_training import PrivateTraining
from nnunetv2_federated.nnunet.training.build_trainer import build_trainer, initialize
from nnunetv2_federated.nnunet.training.private_trainer import PrivateRounds, privately
from nnunetv2_federated.nnunet.training.proximal_loss import ProximalLoss
from nnunetv2_federated.nnunet.training.randomness import seed_everything
from nnunetv2_federated.nnunet.training.trainer import federated_trainer
from nnunetv2_federated.nnunet.training.weights import to_vector

STAGES = {
    "n_stages": 3,
    "features_per_stage": [4, 4, 4],
    "n_conv_per_stage_decoder": [1] * 2,
}
RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"

Build = Callable[..., PrivateRounds]
"""Builds and initialises a trainer of a dataset and configuration."""


@pytest.fixture
def build(results: Path) -> Build:
    """Build a private trainer with a network of a few thousand weights."""
    del results

    def run(
        number: str,
        configuration: str,
        make: Callable[[str], type] = lambda name: privately(federated_trainer(name)),
        **chosen: Any,
    ) -> Any:
        residual = chosen.pop("residual", False)
        dataset = load_dataset(number)
        plans = copy.deepcopy(dataset.plans) | {"plans_name": "nnUNetPrivatePlans"}
        content = plans["configurations"][configuration]
        if "cls" in configuration:
            content["architecture"]["arch_kwargs"]["model_name"] = "test_resnet"
        else:
            dimensions = len(content["patch_size"])
            blocks = "n_blocks_per_stage" if residual else "n_conv_per_stage"
            kwargs = content["architecture"]["arch_kwargs"]
            kwargs.pop("n_conv_per_stage")
            kwargs |= STAGES | {
                "kernel_sizes": [[3] * dimensions] * 3,
                "strides": [[1] * dimensions, *[[2] * dimensions] * 2],
                blocks: [1] * 3,
            }
            if residual:
                content["architecture"]["network_class_name"] = RESIDUAL
        (dataset.folder / "nnUNetPrivatePlans.json").write_text(json.dumps(plans))
        run = a_run(
            number,
            **{
                "configuration": configuration,
                "plans": "nnUNetPrivatePlans",
                "sites": 1,
                "rounds": 4,
                "iterations_per_epoch": 2,
                "val_iterations": 1,
                **chosen,
            },
        )
        seed_everything(1)
        trainer = build_trainer(run, load_dataset(number, run.plans_name), make(run.trainer))
        initialize(trainer, run)
        return trainer

    return run


def patients_of(trainer: PrivateRounds) -> dict[str, tuple[str, ...]]:
    """Give every two training cases one patient."""
    cases, _ = trainer.do_split()
    return {f"p{i}": tuple(cases[i : i + 2]) for i in range(0, len(cases), 2)}


def protect(trainer: PrivateRounds, **given: Any) -> PrivateTraining:
    """Let a trainer train privately, with every patient and noise, if nothing else is given."""
    patients = patients_of(trainer)
    usual = {"clip": 1.0, "patches": 2, "noise_multiplier": 1.0, "probability": 1.0}
    trainer.privacy = PrivateTraining(
        **{**usual, "expected_batch": len(patients), "patients": patients, **given}
    )
    return trainer.privacy


@pytest.mark.parametrize(
    ("dataset", "configuration", "chosen"),
    [
        ("dataset_2d", "2d", {}),
        ("dataset_2d", "2d", {"residual": True}),
        ("dataset_3d", "3d_fullres", {}),
        (
            "dataset_cls",
            "2d_cls",
            {"trainer": "nnUNetTrainerCls", "batchnorm": "group"},
        ),
    ],
    ids=["2d", "residual", "3d", "classifier"],
)
def test_rounds_of_every_kind_of_trainer(
    dataset: str,
    configuration: str,
    chosen: dict[str, Any],
    build: Build,
    request: pytest.FixtureRequest,
) -> None:
    trainer = build(request.getfixturevalue(dataset), configuration, **chosen)
    protect(trainer, patches=3, probability=0.5)
    vectors = [to_vector(trainer.network)]
    for _ in range(2):
        assert np.isfinite(trainer.run_round(0.01))
        vectors.append(to_vector(trainer.network))

    assert trainer.private_steps == 4
    assert trainer.completed == 1
    assert all(np.isfinite(vector).all() for vector in vectors)
    # noise that is smaller than a weight's last digit leaves it
    assert all((a != b).mean() > 0.99 for a, b in itertools.pairwise(vectors))
    assert trainer.last_validation.iterations > 0
    case, *others = next(iter(trainer.privacy.patients.values()))
    batches = [trainer.dataloader_train.data_loader.patches_of(case) for _ in range(4)]
    assert [list(batch["keys"]) for batch in batches] == [[case] * 3] * 4
    augmented = {float(image.sum()) for batch in batches for image in batch["data"]}
    assert len(augmented) > 3  # independently, though few transforms may fall to an image
    assert len(others) == 1
    trainer.close()


def test_without_privacy_the_sibling_trains_like_the_usual_one(
    dataset_2d: str, build: Build
) -> None:
    vectors = []
    for make in (federated_trainer, lambda name: privately(federated_trainer(name))):
        trainer = build(dataset_2d, "2d", make)
        trainer.run_round(0.01, proximal_mu=0.1)
        vectors.append(to_vector(trainer.network))
    assert np.array_equal(*vectors)


def test_the_proximal_term_acts_behind_the_noise(dataset_2d: str, build: Build) -> None:
    trainer = build(dataset_2d, "2d", weight_decay=0.0, momentum=0.0)
    protect(trainer, clip=1e-12, noise_multiplier=0.0)
    received = to_vector(trainer.network)
    seen = []

    def move() -> None:  # after each training or validation iteration
        seen.append((isinstance(trainer.loss, ProximalLoss), trainer.after_noise is not None))
        if len(seen) == 1:
            with torch.no_grad():
                for parameter in trainer.network.parameters():
                    parameter.add_(1.0)

    trainer.on_iteration = move
    trainer.run_round(0.2, proximal_mu=0.5)
    # of two steps the first begins at the received weights; the second goes back 0.2 * 0.5 * 1
    assert np.allclose(to_vector(trainer.network) - received, 0.9, atol=1e-4)
    assert seen == [(False, True)] * 3
    assert trainer.after_noise is None


def test_a_round_whose_time_is_over_has_fewer_steps_and_counts_those(
    dataset_2d: str, build: Build
) -> None:
    trainer = build(dataset_2d, "2d", iterations_per_epoch=4)
    protect(trainer)
    trainer.run_round(0.01, seconds=0.0)
    assert trainer.private_steps == 1
    assert trainer.completed == 0.25


def test_half_precision_gets_a_scale_that_stays(dataset_2d: str, build: Build) -> None:
    trainer = build(dataset_2d, "2d")
    trainer.grad_scaler = torch.amp.GradScaler("cpu")
    protect(trainer)
    assert np.isfinite(trainer.run_round(0.01))
    assert isinstance(trainer.grad_scaler, ConstantScaler)


def test_what_cannot_be_trained_privately_is_refused_before_the_training(
    dataset_cls: str, dataset_2d: str, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build(dataset_cls, "2d_cls", trainer="nnUNetTrainerCls")
    protect(trainer)
    with pytest.raises(SettingsError, match="--batchnorm group"):
        trainer.on_train_start()
    trainer = build(dataset_2d, "2d")
    patients = dict(list(patients_of(trainer).items())[1:])
    protect(trainer, patients=patients)
    with pytest.raises(SettingsError, match=r"2 cases \(case_0\d, case_0\d\) without a patient"):
        trainer.on_train_start()
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    protect(trainer, patches=2**30)  # queues that no shared memory holds
    with pytest.raises(SettingsError, match=r"needed by 2 augmentation workers.*--shm-size"):
        trainer.on_train_start()


@pytest.mark.parametrize("kind", ["2d", "2d_cls"])
def test_workers_make_the_batches_of_drawn_patients_in_order(
    kind: str, build: Build, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = {"trainer": "nnUNetTrainerCls", "batchnorm": "group"}
    dataset, chosen = ("dataset_2d", {}) if kind == "2d" else ("dataset_cls", classifier)
    before = set(multiprocessing.active_children())
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    trainer = build(request.getfixturevalue(dataset), kind, **chosen)
    privacy = protect(trainer, probability=0.4)
    trainer.on_train_start()
    loader = trainer.dataloader_train
    assert isinstance(loader, MultiThreadedAugmenter)

    order = [case for cases in privacy.patients.values() for case in cases]
    taken = []
    for step in range(12):
        batches = next(loader)["patients"]
        if step % 3 == 0:
            continue  # a step that is not taken: the next one must not begin within it
        drawn = [[str(key) for key in batch["keys"]] for batch in batches]
        assert all(len(set(keys)) == 1 and len(keys) == 2 for keys in drawn)
        positions = [order.index(keys[0]) for keys in drawn]
        assert positions == sorted(positions)  # one step: each patient once, in their order
        assert len({position // 2 for position in positions}) == len(positions)
        taken += [keys[0] for keys in drawn]
    assert len(set(taken)) > 2
    assert np.isfinite(trainer.run_round(0.01))
    assert trainer.private_steps == 2
    trainer.close()
    assert set(multiprocessing.active_children()) <= before
