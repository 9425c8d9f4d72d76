"""Trainers of image-level classifiers, for ``nnUNetv2_train`` and any federation alike."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import (
    NonDetMultiThreadedAugmenter,
)
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import (
    LabelManager,
)
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_cls.checks import check_training
from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.loader import ImageLoader
from nnunetv2_cls.metrics import auroc
from nnunetv2_cls.planning import adapted_plans
from nnunetv2_cls.plots import plot_progress
from nnunetv2_cls.splits import SPLITS_FILE, check_own_folds, patients_of
from nnunetv2_cls.tester import ClsTester
from nnunetv2_cls.validation import join_summaries, validate

_ROTATION = math.radians(15)


class _Logger(MetaLogger):
    """nnU-Net's logger with AUROC, and another plot."""

    def __init__(self, logger: MetaLogger) -> None:
        self.__dict__.update(vars(logger))
        self.local_logger.my_fantastic_logging.setdefault("auroc", [])

    def plot_progress_png(self, output_folder: str) -> None:
        """Write ``progress.png``."""
        log = self.local_logger.my_fantastic_logging
        plot_progress(log, Path(output_folder) / "progress.png")


class nnUNetTrainerCls(nnUNetTrainer):  # noqa: N801  # nnU-Net's spelling
    """Classify whole images: cross-entropy, SGD with nesterov momentum, poly learning rate.

    An epoch is one pass over the training cases, then one over the validation cases. What nnU-Net
    logs as pseudo Dice of a class is here its F1, which is the same formula.
    """

    model_name: str | None = None
    """timm model in place of the plans'; ``None`` leaves theirs."""
    batch_size_of_trainer: int | None = None
    """In place of the plans'."""
    lr = 0.01
    momentum_of_trainer = 0.9
    epochs = 100
    balanced_sampling = False
    """Draw each class equally often."""
    class_weights: tuple[float, ...] | None = None
    """Of the cross-entropy."""
    mirrors = True
    """Mirror left and right, in training, validation and prediction."""
    tester = ClsTester()
    """How a comparison of federations tests its models."""

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  # nnU-Net's signature
    ) -> None:
        plans = self.plans_of_trainer(plans, configuration)
        self.image_labels = check_training(plans, configuration, fold, dataset_json)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.enable_deep_supervision = False
        self.num_epochs = self.epochs
        self.initial_lr = self.lr
        self.num_iterations_per_epoch = None
        self.num_val_iterations_per_epoch = None
        classes = self.image_labels.classes
        # as many outputs as classes; nnU-Net insists that label 0 is called background
        labels = {"background": 0} | {name: i for i, name in enumerate(classes) if i}
        self.label_manager = LabelManager(labels, None)
        self.logger: MetaLogger = _Logger(self.logger)

    @classmethod
    def plans_of_trainer(cls, plans: dict[str, Any], configuration: str) -> dict[str, Any]:
        """Return a copy of plans with this trainer's own model and batch size, if it has any.

        Raises
        ------
        ClsError
            If there is no such configuration, or it is none of a classification.
        """
        return adapted_plans(plans, configuration, cls.model_name, cls.batch_size_of_trainer)

    @staticmethod
    def build_network_architecture(  # noqa: D102  # of nnUNetTrainer
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,  # nnU-Net's signature
    ) -> nn.Module:
        del plans_manager, enable_deep_supervision
        network: nn.Module = get_network_from_plans(
            configuration_manager.network_arch_class_name,
            configuration_manager.network_arch_init_kwargs,
            configuration_manager.network_arch_init_kwargs_req_import,
            num_input_channels,
            num_output_channels,
        )
        return network

    def _build_loss(self) -> nn.Module:
        weights = self.class_weights
        if weights is None:
            return nn.CrossEntropyLoss()
        if len(weights) != len(self.image_labels.classes):
            raise ClsError(
                f"class_weights {weights}: give one for each of the classes "
                f"{', '.join(self.image_labels.classes)}."
            )
        return nn.CrossEntropyLoss(torch.tensor(weights, dtype=torch.float32, device=self.device))

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:  # noqa: D102
        optimizer = self._optimizer()
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def _optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            self.network.parameters(),
            self.initial_lr,
            weight_decay=self.weight_decay,
            momentum=self.momentum_of_trainer,
            nesterov=True,
        )

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802
        """Rotate by at most 15 degrees, mirror left and right only: a body has an up and a down."""
        size = self.configuration_manager.patch_size
        mirror_axes = (
            left_right_axes(self.plans_manager.transpose_forward, len(size)) if self.mirrors else ()
        )
        self.inference_allowed_mirroring_axes = mirror_axes
        return (-_ROTATION, _ROTATION), False, size, mirror_axes

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return nnU-Net's split; a fold that it would make up is refused."""
        splits = Path(self.preprocessed_dataset_folder_base) / SPLITS_FILE
        if isinstance(self.fold, int) and not splits.is_file():
            name = self.plans_manager.dataset_name
            check_own_folds(self.fold, self.image_labels.of_case, patients_of(name), name)
        split: tuple[list[str], list[str]] = super().do_split()
        return split

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Loaders of whole images; validation runs in this process, in order."""
        size = self.configuration_manager.patch_size
        rotation, dummy_2d, _, mirror_axes = (
            self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        training, validation = self.get_tr_and_val_datasets()
        if not (training.identifiers and validation.identifiers):
            raise ClsError(
                f"fold {self.fold} has {len(training.identifiers)} training and "
                f"{len(validation.identifiers)} validation cases: use another, or fold all."
            )
        workers = get_allowed_n_proc_DA()
        loader = ImageLoader(
            training,
            self.image_labels,
            self.batch_size,
            size,
            self.get_training_transforms(size, rotation, None, mirror_axes, dummy_2d),
            shuffle=True,
            balanced=self.balanced_sampling,
            workers=max(1, workers),
        )
        val_loader = ImageLoader(
            validation, self.image_labels, self.batch_size, size, None, shuffle=False
        )
        if self.num_iterations_per_epoch is None:
            self.num_iterations_per_epoch = math.ceil(len(training.identifiers) / self.batch_size)
        if self.num_val_iterations_per_epoch is None:
            self.num_val_iterations_per_epoch = math.ceil(
                len(validation.identifiers) / self.batch_size
            )
        if workers == 0:
            augmenter = SingleThreadedAugmenter(loader, None)
        else:
            augmenter = NonDetMultiThreadedAugmenter(
                loader,
                None,
                workers,
                num_cached=max(6, workers // 2),
                seeds=None,
                pin_memory=self.device.type == "cuda",
                wait_time=0.002,
            )
        return augmenter, SingleThreadedAugmenter(val_loader, None)

    @property
    def validated_classes(self) -> int:
        """How many classes a validation step counts."""
        return len(self.image_labels.classes)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:  # nnU-Net's
        """Do nothing: there is none."""

    def on_validation_epoch_start(self) -> None:  # noqa: D102
        super().on_validation_epoch_start()
        self.dataloader_val.data_loader.restart()

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the loss, and counts, probabilities and targets of a batch."""
        data = batch["data"].to(self.device, non_blocking=True)
        target = batch["target"].to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
            logits = self.network(data)
            loss = self.loss(logits, target)
        classes = logits.shape[1]
        predicted = nn.functional.one_hot(logits.argmax(1), classes).bool()
        true = nn.functional.one_hot(target, classes).bool()
        return {
            "loss": loss.detach().cpu().numpy(),
            "tp_hard": (predicted & true).sum(0).cpu().numpy(),
            "fp_hard": (predicted & ~true).sum(0).cpu().numpy(),
            "fn_hard": (~predicted & true).sum(0).cpu().numpy(),
            "probabilities": logits.float().softmax(1).cpu().tolist(),
            "targets": target.cpu().tolist(),
        }

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:  # noqa: D102
        targets = np.concatenate([o["targets"] for o in val_outputs])
        probabilities = np.concatenate([o["probabilities"] for o in val_outputs])
        with np.errstate(invalid="ignore"):  # a class without cases has no F1
            super().on_validation_epoch_end(
                [
                    {k: v for k, v in o.items() if k not in ("probabilities", "targets")}
                    for o in val_outputs
                ]
            )
        self.logger.log("auroc", auroc(targets, probabilities), self.current_epoch)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Classify the validation and the test cases; write tables and plots."""
        del save_probabilities  # they are few: always written
        _, cases = self.do_split()
        summary = validate(self, sorted(cases))
        for name, value in summary["foreground_mean"].items():
            if value is not None:
                self.logger.log_summary(f"final_val/{name}", value)
        self.print_to_log_file("Validation complete", also_print_to_console=True)
        self.print_to_log_file(json.dumps(summary["foreground_mean"]), also_print_to_console=True)

    @staticmethod
    def join_summaries(summaries: list[dict[str, Any]]) -> dict[str, Any]:
        """Join the summaries of several datasets, case by case."""
        return join_summaries(summaries)


def left_right_axes(transpose_forward: Sequence[int], dimensions: int) -> tuple[int, ...]:
    """Return the axis of an image that was x in its file, which is left-right; empty if not seen.

    Parameters
    ----------
    transpose_forward
        Of the plans: the file's axes (z, y, x) = (0, 1, 2) in the order of preprocessed images.
    dimensions
        2 where the first of these is dropped, or 3.
    """
    axis = list(transpose_forward).index(2) - (3 - dimensions)
    return (axis,) if axis >= 0 else ()


class nnUNetTrainerClsNoMirroring(nnUNetTrainerCls):  # noqa: N801
    """No image is mirrored, in training or prediction: left and right are not the same."""

    mirrors = False


class nnUNetTrainerClsResNet34(nnUNetTrainerCls):  # noqa: N801
    """The source presentation's: ResNet-34, Adam, lr 0.01, 50 epochs, batch size 32."""

    model_name = "resnet34"
    batch_size_of_trainer = 32
    epochs = 50

    def _optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay
        )


class nnUNetTrainerClsResNet50(nnUNetTrainerCls):  # noqa: N801
    """The source presentation's: ResNet-50, SGD, lr 0.003, momentum 0.9, 50 epochs, batch 32."""

    model_name = "resnet50"
    batch_size_of_trainer = 32
    epochs = 50
    lr = 0.003
    federation_defaults: ClassVar[dict[str, Any]] = {
        "rounds": 100,
        "local_epochs": 1,
        "momentum": 0.7,
        "sites": 20,
        "sites_per_round": 6,
        "partition": "hybrid",
    }
    """Of ``nnUNetTrainerClsResNet50Federated``, as in the presentation; any flag overrides."""
