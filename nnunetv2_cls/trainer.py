"""Trainers of image-level classifiers, for ``nnUNetv2_train`` and for a federation."""

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
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_cls.checks import check_training
from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.inference import Classifier, Fold
from nnunetv2_cls.loader import ImageLoader
from nnunetv2_cls.metrics import auroc
from nnunetv2_cls.network import build_network
from nnunetv2_cls.onnx_file import ClsOnnxWriter
from nnunetv2_cls.planning import adapted_plans
from nnunetv2_cls.plots import plot_progress
from nnunetv2_cls.splits import SPLITS_FILE, check_folds_of_nnunet, patients_of
from nnunetv2_cls.tester import ClsTester
from nnunetv2_cls.validation import join_summaries, validate

_ROTATION = math.radians(15)
"""Largest angle of the augmentation: a body is never upside down."""


class _Logger(MetaLogger):
    """nnU-Net's logger, which also keeps AUROC and plots the progress of a classifier."""

    def __init__(self, logger: MetaLogger) -> None:
        self.__dict__.update(vars(logger))
        self.local_logger.my_fantastic_logging.setdefault("auroc", [])

    def plot_progress_png(self, output_folder: str) -> None:
        """Write ``progress.png``."""
        log = self.local_logger.my_fantastic_logging
        plot_progress(log, Path(output_folder) / "progress.png")


class nnUNetTrainerCls(nnUNetTrainer):  # noqa: N801  # nnU-Net's spelling
    """Train a classifier of whole images: cross-entropy, Nesterov momentum, poly learning rate.

    An epoch is one pass over the training cases, then one over the validation cases. What nnU-Net
    logs as the pseudo Dice of a class is the F1 of the class here: the formula is the same.

    A subclass changes the training by setting the attributes below.
    """

    model_name: str | None = None
    """timm model in place of the one in the plans; ``None`` to take theirs."""
    batch_size_of_trainer: int | None = None
    """Batch size in place of the one in the plans; ``None`` to take theirs."""
    lr = 0.01
    """Initial learning rate."""
    momentum_of_trainer = 0.9
    """Momentum of SGD."""
    epochs = 100
    """Number of epochs."""
    balanced_sampling = False
    """Draw each class equally often."""
    class_weights: tuple[float, ...] | None = None
    """Weight of each class in the cross-entropy; ``None`` for equal weights."""
    mirrors = True
    """Mirror left and right, in training, validation and prediction."""
    tester = ClsTester()
    """Tester of the models in a comparison of federations."""
    onnx = ClsOnnxWriter()
    """Writer of the models' ONNX files in a release."""

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
        # gives the network as many outputs as classes; nnU-Net requires label 0 to be background
        labels = {"background": 0} | {name: i for i, name in enumerate(classes) if i}
        self.label_manager = LabelManager(labels, None)
        self.logger: MetaLogger = _Logger(self.logger)

    @classmethod
    def plans_of_trainer(cls, plans: dict[str, Any], configuration: str) -> dict[str, Any]:
        """Return a copy of the plans with this trainer's own model and batch size, if it has any.

        Raises
        ------
        ClsError
            If the plans have no such configuration, or it segments.
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
        return build_network(configuration_manager, num_input_channels, num_output_channels)

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
        """Rotate by at most 15 degrees, and mirror left and right only."""
        size = self.configuration_manager.patch_size
        mirror_axes = (
            left_right_axes(self.plans_manager.transpose_forward, len(size)) if self.mirrors else ()
        )
        self.inference_allowed_mirroring_axes = mirror_axes
        return (-_ROTATION, _ROTATION), False, size, mirror_axes

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return nnU-Net's split of a fold, but refuse a fold that it would draw at random."""
        splits = Path(self.preprocessed_dataset_folder_base) / SPLITS_FILE
        if isinstance(self.fold, int) and not splits.is_file():
            name = self.plans_manager.dataset_name
            check_folds_of_nnunet(self.fold, self.image_labels.of_case, patients_of(name), name)
        split: tuple[list[str], list[str]] = super().do_split()
        return split

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Return loaders of whole images; validation runs in this process, in order."""
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
        augmenter = _augmenter(loader, workers, pin_memory=self.device.type == "cuda")
        return augmenter, SingleThreadedAugmenter(val_loader, None)

    @property
    def validated_classes(self) -> int:
        """Number of classes of which a validation step counts the hits."""
        return len(self.image_labels.classes)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:  # nnU-Net's
        """Do nothing: a classifier has no deep supervision."""

    def on_validation_epoch_start(self) -> None:  # noqa: D102
        super().on_validation_epoch_start()
        self.dataloader_val.data_loader.restart()

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the loss, the counts by class, the probabilities and the targets of a batch."""
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
        del save_probabilities  # they are few, and always written
        self.network.eval()
        mirror_axes = tuple(self.inference_allowed_mirroring_axes or ())
        classifier = Classifier(
            self.plans_manager,
            self.configuration_name,
            self.dataset_json,
            (Fold(self.network, mirror_axes),),
        )
        _, cases = self.do_split()
        dataset = self.dataset_class(self.preprocessed_dataset_folder, sorted(cases))
        summary = validate(classifier, dataset, self.image_labels, Path(self.output_folder))
        for name, value in summary["foreground_mean"].items():
            if value is not None:
                self.logger.log_summary(f"final_val/{name}", value)
        self.print_to_log_file("Validation complete", also_print_to_console=True)
        self.print_to_log_file(json.dumps(summary["foreground_mean"]), also_print_to_console=True)

    @staticmethod
    def join_summaries(summaries: list[dict[str, Any]]) -> dict[str, Any]:
        """Join the summaries of several datasets, case by case."""
        return join_summaries(summaries)


def _augmenter(
    loader: ImageLoader, workers: int, *, pin_memory: bool
) -> SingleThreadedAugmenter | NonDetMultiThreadedAugmenter:
    """Run a loader in worker processes; without workers, in this process."""
    if workers == 0:
        return SingleThreadedAugmenter(loader, None)
    return NonDetMultiThreadedAugmenter(
        loader,
        None,
        workers,
        num_cached=max(6, workers // 2),
        seeds=None,
        pin_memory=pin_memory,
        wait_time=0.002,
    )


def left_right_axes(transpose_forward: Sequence[int], dimensions: int) -> tuple[int, ...]:
    """Return the spatial axis of a preprocessed image that was x, left-right, in its file.

    Parameters
    ----------
    transpose_forward
        nnU-Net's order of axes: the file's (z, y, x) = (0, 1, 2), as preprocessed images have them.
    dimensions
        Dimensions of the configuration: 3, or 2, which drops the first of these axes.

    Returns
    -------
    tuple
        The axis, or nothing if a 2D configuration drops it.
    """
    axis = list(transpose_forward).index(2) - (3 - dimensions)
    return (axis,) if axis >= 0 else ()


class nnUNetTrainerClsNoMirroring(nnUNetTrainerCls):  # noqa: N801
    """Train without mirroring, for images in which left and right differ; predict so, too."""

    mirrors = False


class nnUNetTrainerClsResNet34(nnUNetTrainerCls):  # noqa: N801
    """Train as the source presentation: ResNet-34, Adam, lr 0.01, 50 epochs, batch size 32."""

    model_name = "resnet34"
    batch_size_of_trainer = 32
    epochs = 50

    def _optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay
        )


class nnUNetTrainerClsResNet50(nnUNetTrainerCls):  # noqa: N801
    """Train as the source presentation: ResNet-50, SGD, lr 0.003, 50 epochs, batch size 32."""

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
    """Choices that a federation with this trainer starts from; any flag overrides them."""
