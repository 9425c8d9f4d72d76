"""A trainer's optimizer with the learning rate that the server gives for the round.

nnU-Net's loop calls ``lr_scheduler.step()`` at the start of every epoch. :class:`ServerLR` stands
there in place of the trainer's own scheduler, and :class:`ServerRate` puts it there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_federated.federation.errors import SettingsError

if TYPE_CHECKING:

    class _Base(nnUNetTrainer):
        loss: Any
        dataloader_train: Any

else:
    _Base = object

SUFFIX = "Federated"
"""What the name of a trainer's federated sibling ends with."""
ABSENT = object()
"""Stands for the value of an attribute that did not exist."""


class ServerLR:
    """Stands where nnU-Net expects a learning rate scheduler; the server gives the rate."""

    def __init__(self, optimizer: torch.optim.Optimizer, lr: float) -> None:
        self.optimizer = optimizer
        self.lr = lr
        self.shares: tuple[float, ...] = (1.0,) * len(optimizer.param_groups)
        """Factor of the rate for each parameter group."""

    def step(self, *_: object, **__: object) -> None:
        """Apply the round's learning rate; all local epochs of a round share it."""
        for group, share in zip(self.optimizer.param_groups, self.shares, strict=True):
            group["lr"] = self.lr * share

    @property
    def is_kept(self) -> bool:
        """Whether the optimizer still has the rates that were applied."""
        groups = zip(self.optimizer.param_groups, self.shares, strict=True)
        return all(float(group["lr"]) == self.lr * share for group, share in groups)


class ServerRate(_Base):
    """Mixin for any ``nnUNetTrainer`` subclass: its optimizer, with the server's learning rate."""

    momentum_of_run: float | None = None
    """Overrides the optimizer's momentum; ``None`` leaves the trainer's own."""
    before_optimizer: dict[str, Any]
    """Values before ``configure_optimizers`` of the attributes that the trainer changes in it."""
    _started = False
    """Whether the training has begun; from then on the optimizer stays the same."""
    _reads_own = False
    """Whether the trainer's own scheduler is being read, so that it may set the rate."""
    _server_lr: ServerLR | None = None

    @property
    def name_of_trainer(self) -> str:
        """Name of the trainer that this is the federated sibling of, as ``-tr``."""
        return type(self).__name__.removesuffix(SUFFIX)

    def own_optimizer(self) -> tuple[torch.optim.Optimizer, Any]:
        """Return a new optimizer and the scheduler that the trainer has in nnU-Net."""
        self._reads_own = True
        optimizer_and_scheduler: tuple[torch.optim.Optimizer, Any] = self.configure_optimizers()
        return optimizer_and_scheduler

    @property
    def _rate(self) -> ServerLR:
        if self._server_lr is None:
            raise SettingsError(f"trainer {self.name_of_trainer} has no optimizer")
        return self._server_lr

    # methods of nnUNetTrainer that differ in a federation

    def configure_optimizers(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:  # noqa: ANN401, D102  # trainers with stages say which
        before = dict(vars(self))
        optimizer, own_scheduler = super().configure_optimizers(*args, **kwargs)
        if self._reads_own:
            return optimizer, own_scheduler
        if self._server_lr is None or self._server_lr.optimizer is not optimizer:
            if self._started:
                raise SettingsError(
                    f"trainer {self.name_of_trainer} makes another optimizer while it trains: a "
                    "federation has one; give a trainer with one stage."
                )
            self.before_optimizer = {
                name: before.get(name, ABSENT)
                for name, value in vars(self).items()
                if before.get(name, ABSENT) is not value
            }
            self._set_momentum(optimizer)
            self._server_lr = ServerLR(optimizer, self.initial_lr)
        return optimizer, self._server_lr

    def _set_momentum(self, optimizer: torch.optim.Optimizer) -> None:
        if self.momentum_of_run is None:
            return
        for group in optimizer.param_groups:
            if "momentum" not in group:
                raise SettingsError(
                    f"--momentum {self.momentum_of_run}: {type(optimizer).__name__} of "
                    f"{self.name_of_trainer} has no momentum; leave the flag out."
                )
            group["momentum"] = self.momentum_of_run

    def on_train_epoch_start(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401, D102
        super().on_train_epoch_start(*args, **kwargs)
        if not self._reads_own:
            self._rate.step()  # after whatever rate a hook of the trainer has set
