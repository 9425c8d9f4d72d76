"""Canaries among the patients of a private training: drawn as they are, without an image.

With ``PrivateSteps`` between :class:`CanaryWatch` and :class:`CanaryPatients`, and a trainer behind
them, it has canaries; :class:`.PrivateTraining` gets them from :func:`patients_of_canaries`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunetv2_federated.nnunet.privacy.canaries import Canaries, Included

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    class _Base(nnUNetTrainer):
        optimizer: Any

else:
    _Base = object

_NAME = "canary of an audit "


def patients_of_canaries(included: Included) -> dict[str, tuple[str, ...]]:
    """Return the canaries that take part as patients, each with one case of the same name."""
    names = [f"{_NAME}{canary}" for canary in np.flatnonzero(included)]
    return {name: (name,) for name in names}


class CanaryWatch(_Base):
    """Mixin before :class:`.PrivateSteps`: looks at what each step releases."""

    canaries: Canaries

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Look at the gradients before the optimizer's step."""
        watch = self.optimizer.register_step_pre_hook(self.canaries.observe)
        try:
            outputs: dict[str, Any] = super().train_step(batch)
        finally:
            watch.remove()
        return outputs


class CanaryPatients(_Base):
    """Mixin between :class:`.PrivateSteps` and a trainer: loads canaries, takes their steps."""

    canaries: Canaries

    def get_dataloaders(self) -> tuple[Any, Any]:  # noqa: D102
        training, validation = super().get_dataloaders()
        training.data_loader = CanaryLoader(
            training.data_loader, list(patients_of_canaries(self.canaries.included))
        )
        return training, validation

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Do with the gradient of a canary what the trainer does with that of a loss."""
        if "canary" not in batch:
            outputs: dict[str, Any] = super().train_step(batch)
            return outputs
        self.optimizer.zero_grad()
        self.canaries.set_gradient(batch["canary"])
        self.optimizer.step()
        return {"loss": np.float32(0)}


class CanaryLoader:
    """Training loader of nnU-Net's kind that has canaries among its cases.

    Parameters
    ----------
    loader
        The trainer's own loader.
    names
        Names of the canaries.
    """

    def __init__(self, loader: Any, names: Sequence[str]) -> None:  # noqa: ANN401  # nnU-Net's
        self._loader = loader
        self.indices = [*map(str, loader.indices), *names]
        """Cases to draw from; :class:`.PoissonPatients` puts one there."""
        self.batch_size: int = loader.batch_size
        """Patches of a batch."""
        self.transforms = loader.transforms
        """Transforms of the trainer's own loader."""

    def generate_train_batch(self) -> dict[str, Any]:
        """Return the batch of the trainer's own loader; of a canary, which one it is."""
        (case,) = self.indices
        if case.startswith(_NAME):
            number = int(case.removeprefix(_NAME))
            return {"canary": number, "keys": [case] * self.batch_size}
        self._loader.indices = [case]
        self._loader.batch_size = self.batch_size
        if hasattr(self._loader, "restart"):  # it may have drawn ahead
            self._loader.restart()
        batch: dict[str, Any] = self._loader.generate_train_batch()
        return batch
