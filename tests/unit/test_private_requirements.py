"""Trainers whose private steps would not be what is promised."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from private_doubles import Bare, classification, privacy
from torch import nn

from nnunetv2_cls.network import timm_classifier
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.nnunet.privacy.patient_workers import private_augmenter
from nnunetv2_federated.nnunet.privacy.private_steps import PrivateSteps
from nnunetv2_federated.nnunet.privacy.requirements import check_loader, check_trainer
from nnunetv2_federated.nnunet.training.private_trainer import PrivateRounds, privately
from nnunetv2_federated.nnunet.training.shared_memory import queued_patients
from nnunetv2_federated.nnunet.training.trainer import (
    FederatedRounds,
    federate,
    nnUNetTrainerFederated,
    stock_name,
)


def trainer(**attributes: Any) -> Bare:
    found = classification("test_resnet")
    for name, value in attributes.items():
        setattr(found, name, value)
    return found


def test_a_trainer_with_group_norm_is_taken() -> None:
    check_trainer(trainer(), privacy(clip=12))
    check_trainer(trainer(class_weights=None, balanced_sampling=False), privacy())


@pytest.mark.parametrize(
    ("attributes", "given", "said"),
    [
        ({}, {"clip": 12.5}, "--dp-clip 12.5: nnU-Net itself clips every gradient to 12"),
        ({"is_ddp": True}, {}, "several processes"),
        ({"is_cascaded": True, "configuration_name": "3d_cascade_fullres"}, {}, "3d_cascade_f"),
        ({"class_weights": (1.0, 2.0)}, {}, "class_weights of PrivateBare.*leave class_weights"),
        ({"balanced_sampling": True}, {}, "balanced_sampling of PrivateBare"),
        (
            {"network": timm_classifier(1, 2, "test_resnet")},
            {},
            r"BatchNorm\w* \(\S+\): it keeps statistics.*--batchnorm group",
        ),
        (
            {"network": nn.Sequential(nn.InstanceNorm2d(2, track_running_stats=True))},
            {},
            r"InstanceNorm2d \(0\)",
        ),
    ],
)
def test_what_mixes_patients_is_refused_in_a_line(
    attributes: dict[str, Any], given: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingsError, match=said) as refused:
        check_trainer(trainer(**attributes), privacy(**given))
    assert "\n" not in str(refused.value)


def loader(**attributes: Any) -> Any:
    return SimpleNamespace(
        **{
            "indices": ["a", "b"],
            "batch_size": 2,
            "transforms": None,
            "generate_train_batch": dict,
            **attributes,
        }
    )


TWO = {"p": ("a",), "q": ("b",)}


@pytest.mark.parametrize(
    ("given", "attributes", "said"),
    [
        ({"p": ("a",)}, {}, r"1 case \(b\) without a patient"),
        ({**TWO, "r": ("c",)}, {}, r"1 case \(c\) of the patients, but not among the training"),
        (TWO, {"sampling_probabilities": [0.9, 0.1]}, "sampling_probabilities"),
    ],
)
def test_a_loader_with_other_cases_or_odds_is_refused(
    given: dict[str, tuple[str, ...]], attributes: dict[str, Any], said: str
) -> None:
    check_loader(loader(), privacy(patients=TWO))
    with pytest.raises(SettingsError, match=said):
        check_loader(loader(**attributes), privacy(patients=given))


def test_what_is_no_loader_of_nnunets_kind_is_refused() -> None:
    with pytest.raises(SettingsError, match="NoneType as data loader, which has no indices"):
        private_augmenter(None, privacy())
    with pytest.raises(SettingsError, match="SingleThreadedAugmenter that transforms whole batche"):
        private_augmenter(SingleThreadedAugmenter(loader(), dict), privacy(patients=TWO))


def test_a_loader_of_its_own_way_is_refused_before_the_training() -> None:
    own = loader(generate_train_batch=lambda: {"keys": ["a", "b"]})
    with pytest.raises(SettingsError, match="draws cases in its own way"):
        private_augmenter(SingleThreadedAugmenter(own, None), privacy(patients=TWO))


def test_the_private_sibling_has_its_steps_just_before_the_trainer() -> None:
    class Own(nnUNetTrainer):
        def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
            return batch

    for given in (Own, federate(Own)):
        private = privately(given)
        names = [c.__name__ for c in private.__mro__]
        assert names[:2] == ["OwnFederated", "PrivateRounds"]
        assert names.index("FederatedRounds") < names.index("PrivateSteps") < names.index("Own")
        assert private.privacy is None
        assert stock_name(private) == "nnUNetTrainer"
        assert privately(private) is private
    assert privately(nnUNetTrainerFederated).__name__ == "nnUNetTrainerFederated"
    assert issubclass(privately(nnUNetTrainer), PrivateRounds)
    assert not issubclass(federate(Own), PrivateSteps)  # the ordinary path


def test_a_trainer_federated_by_hand_is_refused() -> None:
    class Plain(FederatedRounds, nnUNetTrainer):
        """Nothing of its own."""

    class ByHand(FederatedRounds, nnUNetTrainer):
        def __init__(self) -> None:
            """Something of its own."""

    class Further(nnUNetTrainerFederated):
        pass

    assert privately(Plain).__name__ == "Plain"
    for own in (ByHand, Further):
        with pytest.raises(SettingsError, match=r"is federated by code of its own.*nnUNetTrainer,"):
            privately(own)


@pytest.mark.parametrize(
    ("workers", "pinned", "batches"),
    [
        (0, False, 0),
        (2, True, (2 + 2 + 1) + (3 + 1)),
        (2, False, (2 + 2 + 3 + 2) + 2 * (3 + 1)),
        (12, True, (12 + 12 + 1) + (3 + 1)),
        (12, False, (12 + 12 + 6 + 2) + 2 * (3 + 1)),
    ],
)
def test_patients_in_full_queues(workers: int, pinned: bool, batches: int) -> None:
    assert queued_patients(workers, pinned=pinned) == batches
