"""nnU-Net trainers whose epoch loop is driven from outside, a round at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunetv2_federated.federation.disk import naming_the_disk
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.messages import Validation
from nnunetv2_federated.training.checkpoint_file import save_as_stock
from nnunetv2_federated.training.dataset import find_trainer
from nnunetv2_federated.training.shared_memory import (
    batch_bytes,
    check_shared_memory,
    naming_shared_memory,
)
from nnunetv2_federated.training.tracking import untracked

if TYPE_CHECKING:

    class _Base(nnUNetTrainer):
        loss: Any
        dataloader_train: Any

else:
    _Base = object

SUFFIX = "Federated"


class ServerLR:
    """Stands where nnU-Net expects an LR scheduler; the server says the rate."""

    def __init__(self, optimizer: torch.optim.Optimizer, lr: float) -> None:
        self.optimizer = optimizer
        self.lr = lr

    def step(self, _epoch: int | None = None) -> None:
        """Apply the round's learning rate; local epochs share it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr


class ProximalLoss(nn.Module):
    """FedProx: ``loss + mu / 2 * ||w - w_received||^2`` (Li et al. 2018, arXiv:1812.06127, eq. 2).

    The term is part of training only; under ``torch.no_grad`` the loss is nnU-Net's own.
    """

    def __init__(self, loss: nn.Module, network: nn.Module, mu: float) -> None:
        super().__init__()
        self.loss = loss
        self.mu = mu
        self._weights = [p for p in network.parameters() if p.requires_grad]
        self._received = [p.detach().clone() for p in self._weights]

    def forward(self, output: Any, target: Any) -> torch.Tensor:  # noqa: ANN401  # nnU-Net's types
        """Return the loss of a batch, a scalar."""
        loss: torch.Tensor = self.loss(output, target)
        if not torch.is_grad_enabled():
            return loss
        distance = sum(
            (w - r).square().sum() for w, r in zip(self._weights, self._received, strict=True)
        )
        return loss + self.mu / 2 * distance


class _Steps:
    """Counts a round's training iterations, until its time is over."""

    def __init__(self, seconds: float | None = None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._losses: list[float] = []
        self._skipped = 0

    def over(self) -> bool:
        """Whether the time is over, and there was an iteration."""
        return self._end is not None and bool(self._losses) and time.monotonic() > self._end

    def take(self, outputs: dict[str, Any]) -> dict[str, Any]:
        """Count an iteration."""
        self._losses.append(float(outputs["loss"]))
        return outputs

    def skip(self) -> dict[str, Any]:
        """Stand in for an iteration, without changing the epoch's mean loss."""
        self._skipped += 1
        return {"loss": np.mean(self._losses)}

    @property
    def completed(self) -> float:
        """Share of the iterations that were done."""
        total = len(self._losses) + self._skipped
        return len(self._losses) / total if total else 1.0


class _UntilDeadline:
    """A loader that repeats its last batch when the time is over: nothing is done with it."""

    def __init__(self, loader: Any, steps: _Steps) -> None:  # noqa: ANN401  # nnU-Net's loaders
        self._loader = loader
        self._steps = steps
        self._batch: Any = None

    def __next__(self) -> Any:  # noqa: ANN401
        if self._batch is None or not self._steps.over():
            self._batch = next(self._loader)
        return self._batch


def _no_benchmark(loader: object) -> None:
    """Blur is timed to choose an algorithm; a choice made by a stopwatch cannot be repeated."""
    if not isinstance(loader, SingleThreadedAugmenter):
        return
    pending = [loader.data_loader.transforms]
    while pending:
        transform = pending.pop()
        if isinstance(transform, GaussianBlurTransform):
            transform.benchmark = False
        pending += getattr(transform, "transforms", None) or []
        if getattr(transform, "transform", None) is not None:
            pending.append(transform.transform)


class FederatedRounds(_Base):
    """Mixin for any ``nnUNetTrainer`` subclass: nnU-Net's own epochs, a round at a time.

    nnU-Net's ``run_training`` and every hook it calls run unchanged. What differs: the learning
    rate comes from the server, the cases may be a site's, and start and end of the training happen
    once for all rounds.
    """

    site_cases: tuple[list[str], list[str]] | None = None
    """Training and validation cases of a site; ``None`` for nnU-Net's own split."""
    momentum: float | None = None
    """Overrides the optimizer's momentum; ``None`` leaves the trainer's own."""
    on_iteration: Callable[[], None] | None = None
    """Called after every training and validation iteration."""
    _started = False
    _in_round = False
    _steps = _Steps()

    last_validation = Validation(0, 0.0, [], [], [])
    """Sums over the validation iterations of the last epoch."""

    @property
    def completed(self) -> float:
        """Share of the last round's training iterations that were done."""
        return self._steps.completed

    @property
    def validated_classes(self) -> int | None:
        """How many classes :attr:`last_validation` counts; ``None`` if only the trainer knows.

        A trainer with a validation of its own may say it in an attribute of this name.
        """
        own: int | None = getattr(super(), "validated_classes", None)
        if own is not None or super().validation_step.__func__ is not nnUNetTrainer.validation_step:
            return own
        manager = self.label_manager
        found = manager.foreground_regions if manager.has_regions else manager.foreground_labels
        return len(found)

    def run_round(
        self,
        lr: float,
        epochs: int = 1,
        proximal_mu: float = 0.0,
        seconds: float | None = None,
    ) -> float:
        """Train ``epochs`` epochs of nnU-Net at a fixed learning rate.

        Parameters
        ----------
        lr
            Learning rate of the round, from the server.
        epochs
            Local epochs, each with nnU-Net's training and validation iterations.
        proximal_mu
            Weight of FedProx's proximal term, relative to the weights at entry; 0 for none.
        seconds
            Train no longer than this; what was done then is in :attr:`completed`. At least one
            iteration is.

        Returns
        -------
        float
            Mean training loss over the epochs. Validation counts are in :attr:`last_validation`.
        """
        self.on_train_start()
        self.lr_scheduler.lr = lr
        self.num_epochs = self.current_epoch + epochs
        plain_loss = self.loss
        if proximal_mu > 0:
            self.loss = ProximalLoss(plain_loss, self.network, proximal_mu)
        self._in_round = True
        self._steps = _Steps(seconds)
        loader = self.dataloader_train
        if seconds is not None:
            self.dataloader_train = _UntilDeadline(loader, self._steps)
        try:
            super().run_training()
        finally:
            self._in_round = False
            self.loss = plain_loss
            self.dataloader_train = loader
        losses = self.logger.get_value("train_losses", step=None)[-epochs:]
        return float(np.mean(losses))

    @torch.no_grad()
    def validate_iterations(self, iterations: int) -> Validation:
        """Validate the present weights on patches, without a trace in nnU-Net's log."""
        self.on_validation_epoch_start()
        return _sum_validation(
            [self.validation_step(next(self.dataloader_val)) for _ in range(iterations)]
        )

    def close(self) -> None:
        """Stop the augmentation workers."""
        if self._started:
            self.on_train_end()
            self._started = False

    # seams of nnUNetTrainer

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  # nnU-Net's signature
    ) -> None:
        with untracked():  # a federation is one run: GlobalModel starts it
            super().__init__(plans, configuration, fold, dataset_json, device)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, ServerLR]:  # noqa: D102
        optimizer, _ = super().configure_optimizers()
        if self.momentum is not None:
            for group in optimizer.param_groups:
                if "momentum" not in group:
                    raise SettingsError(
                        f"--momentum {self.momentum}: {type(optimizer).__name__} of "
                        f"{type(self).__name__} has no momentum; leave the flag out."
                    )
                group["momentum"] = self.momentum
        return optimizer, ServerLR(optimizer, self.initial_lr)

    def do_split(self) -> tuple[list[str], list[str]]:  # noqa: D102
        return self.site_cases if self.site_cases is not None else super().do_split()

    def get_dataloaders(self) -> tuple[Any, Any]:  # noqa: D102
        check_workers(self)
        loaders: tuple[Any, Any] = super().get_dataloaders()
        for loader in loaders:
            _no_benchmark(loader)
        return loaders

    def on_train_start(self) -> None:  # noqa: D102
        if not self._started:
            super().on_train_start()
            self._started = True

    def on_train_end(self) -> None:  # noqa: D102
        if not self._in_round:
            super().on_train_end()

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:  # noqa: D102
        self.last_validation = _sum_validation(val_outputs)
        super().on_validation_epoch_end(val_outputs)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:  # noqa: D102
        # others write, and pass on what they like; of shared memory first: that is no such disk
        with naming_the_disk(Path(self.output_folder)), naming_shared_memory():
            super().perform_actual_validation(save_probabilities)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:  # noqa: D102
        if self._steps.over():
            return self._counted(self._steps.skip())
        return self._counted(self._steps.take(super().train_step(batch)))

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:  # noqa: D102
        return self._counted(super().validation_step(batch))

    def _counted(self, outputs: dict[str, Any]) -> dict[str, Any]:
        if self.on_iteration is not None:
            self.on_iteration()
        return outputs

    def save_checkpoint(self, filename: str) -> None:
        """Save like nnU-Net, atomically and under the name of the nearest stock trainer."""
        if self.disable_checkpointing:
            super().save_checkpoint(filename)
        else:
            save_as_stock(super().save_checkpoint, filename, stock_name(type(self)))


def check_workers(trainer: FederatedRounds, trainers: int = 1) -> None:
    """Raise ``SettingsError`` if shared memory is too small for its augmentation workers.

    Parameters
    ----------
    trainer
        Initialised.
    trainers
        How many such there will be at the same time.
    """
    batch = batch_bytes(
        trainer.batch_size,
        trainer.configuration_manager.patch_size,
        trainer.num_input_channels,
        trainer.label_manager,
    )
    check_shared_memory(batch, pinned=trainer.device.type == "cuda", trainers=trainers)


def _sum_validation(outputs: list[dict[str, Any]]) -> Validation:
    tp, fp, fn = (
        np.sum([output[key] for output in outputs], axis=0).astype(float).tolist()
        for key in ("tp_hard", "fp_hard", "fn_hard")
    )
    return Validation.of(len(outputs), float(np.sum([o["loss"] for o in outputs])), tp, fp, fn)


class nnUNetTrainerFederated(FederatedRounds, nnUNetTrainer):  # noqa: N801  # nnU-Net's spelling
    """``nnUNetTrainer``, federated."""


def federate(trainer: type) -> type[FederatedRounds]:
    """Return the federated sibling of any trainer, ``<Name>Federated``."""
    if issubclass(trainer, FederatedRounds):
        return trainer
    if trainer is nnUNetTrainer:
        return nnUNetTrainerFederated
    return type(trainer.__name__ + SUFFIX, (FederatedRounds, trainer), {})


def federated_trainer(name: str) -> type[FederatedRounds]:
    """Find ``nnUNetTrainer``, ``nnUNetTrainerFederated`` or any other trainer, federated.

    Raises
    ------
    SettingsError
        If there is no such trainer.
    """
    if name == nnUNetTrainerFederated.__name__:
        return nnUNetTrainerFederated
    try:
        return federate(find_trainer(name))
    except SettingsError:
        if not name.endswith(SUFFIX):
            raise
        return federate(find_trainer(name.removesuffix(SUFFIX)))


def stock_name(trainer: type) -> str:
    """Name of the nearest trainer that inference can use without this package.

    The first ancestor of nnU-Net's own that builds the same architecture; for an external trainer
    with an architecture of its own, that trainer.
    """
    ancestors = [
        c for c in trainer.__mro__ if not issubclass(c, FederatedRounds) and c is not object
    ]
    builds = [
        c
        for c in ancestors
        if getattr(c, "build_network_architecture", None) is trainer.build_network_architecture  # type: ignore[attr-defined]
    ]
    stock = [c for c in builds if c.__module__.startswith("nnunetv2.")]
    return (stock or builds or ancestors)[0].__name__
