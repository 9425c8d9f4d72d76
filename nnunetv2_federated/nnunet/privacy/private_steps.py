"""DP-SGD for any trainer: one patient at a time through the trainer's own ``train_step``.

A trainer's loss may be no mean over cases: batch Dice, an ignore label, cross-entropy of the
hardest voxels. With one patient at a time each of them is a function of one patient, and his
gradient, clipped, is exactly what he adds; there are no hooks and no per-sample rules for layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.nnunet.privacy.clipped_sum import ClippedSum
from nnunetv2_federated.nnunet.privacy.constant_scaler import ConstantScaler
from nnunetv2_federated.nnunet.privacy.keyed_randomness import forget_seed, keyed_generator
from nnunetv2_federated.nnunet.privacy.patient_workers import private_augmenter
from nnunetv2_federated.nnunet.privacy.private_training import PrivateTraining
from nnunetv2_federated.nnunet.privacy.requirements import check_trainer

if TYPE_CHECKING:

    class _Base(nnUNetTrainer):
        optimizer: Any
        grad_scaler: Any

else:
    _Base = object


class PrivateSteps(_Base):
    """Mixin for any ``nnUNetTrainer`` subclass, before it in the order of classes.

    A step draws patients, adds up their clipped gradients, adds noise and lets the trainer's own
    optimizer step once. Momentum, weight decay and learning rates act on what was released, and
    cost no privacy.
    """

    privacy: PrivateTraining | None = None
    """How to train privately; ``None`` trains as the trainer does. Set before the training."""
    private_steps = 0
    """Number of releases so far, those of steps without a patient included."""
    after_noise: Callable[[], None] | None = None
    """Called between noise and optimizer, to add to the gradients what no patient's data is in."""

    # methods of nnUNetTrainer

    def get_dataloaders(self) -> tuple[Any, Any]:  # noqa: D102
        if self.privacy is None:
            loaders: tuple[Any, Any] = super().get_dataloaders()
            return loaders
        check_trainer(self, self.privacy)
        if self.grad_scaler is not None:
            self.grad_scaler = ConstantScaler(self.device.type)
        training, validation = super().get_dataloaders()
        return private_augmenter(training, self.privacy), validation

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Take one step with the patients of a batch ``{"patients": [batch of each]}``.

        Returns
        -------
        dict
            Mean loss of the patients for the site's own log, over those whose loss is finite; 0 if
            there is none.

        Raises
        ------
        SiteError
            If the trainer changes weights otherwise than by one step of its optimizer.
        """
        if self.privacy is None:
            plain: dict[str, Any] = super().train_step(batch)
            return plain
        optimizer = self.optimizer
        total = ClippedSum(self._trained(), self.privacy.clip)
        # a trainer may look at the rate, and a scaler finds each parameter once
        total.param_groups[0].update(
            {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
        )
        self.optimizer = total
        try:
            losses = self._add_up(total, batch["patients"])
        finally:
            self.optimizer = optimizer
        self.private_steps += 1
        total.release(
            self.privacy.noise_multiplier,
            self.privacy.expected_batch,
            keyed_generator(self.device),
        )
        if self.after_noise is not None:
            self.after_noise()
        optimizer.step()
        total.zero_grad()
        finite = [loss for loss in losses if math.isfinite(loss)]
        return {"loss": np.float32(np.mean(finite) if finite else 0.0)}

    def _trained(self) -> Iterable[torch.nn.Parameter]:
        """Yield what the optimizer changes, and what else of the network gets gradients."""
        groups = self.optimizer.param_groups
        return chain(*(group["params"] for group in groups), self.network.parameters())

    def _add_up(self, total: ClippedSum, batches: Iterable[dict[str, Any]]) -> list[float]:
        """Add the clipped gradient of each patient to a sum; return their losses."""
        losses = []
        # torch counts changes in place of each tensor
        tensors = [*self.network.parameters(), *self.network.buffers()]
        before = [tensor._version for tensor in tensors]
        for number, batch in enumerate(batches, start=1):
            forget_seed()  # of dropout
            losses.append(float(np.mean(super().train_step(batch)["loss"])))
            if total.steps != number or [tensor._version for tensor in tensors] != before:
                raise SiteError(
                    f"trainer {type(self).__name__.removesuffix('Federated')} steps its optimizer "
                    f"{total.steps - number + 1} times for a batch, or changes weights otherwise: "
                    "with differential privacy a train_step steps once; give another trainer"
                )
        return losses
