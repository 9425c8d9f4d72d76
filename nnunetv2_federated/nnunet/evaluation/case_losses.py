"""The loss of a trained network on single cases, by its trainer's own validation step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from nnunetv2_federated.nnunet.environment import environment
from nnunetv2_federated.nnunet.training.randomness import seed_everything
from nnunetv2_federated.nnunet.training.trainer import FederatedRounds

_PATCHES = 2
"""Patches of a case in one batch: nnU-Net draws the second of two around a foreground voxel."""
_SEED = 12345


class CaseLosses:
    """Losses on single cases, without augmentation; weights may be changed between two calls.

    Parameters
    ----------
    trainer
        Initialised trainer.
    cases
        All cases that will be asked for.
    batches
        Number of batches of a case, each of two patches. A case that fits into one patch is the
        same in each, and is looked at once.
    """

    def __init__(self, trainer: FederatedRounds, cases: Sequence[str], batches: int) -> None:
        self._trainer = trainer
        self._batches = batches
        trainer.site_cases = (list(cases), list(cases))
        with environment(nnUNet_n_proc_DA="0"):  # in this process: its draws can be repeated
            _, validation = trainer.get_dataloaders()
        self._loader: Any = validation.data_loader
        self._loader.batch_size = _PATCHES

    @torch.no_grad()
    def of(self, case: str) -> float:
        """Return the mean loss over patches of a case, which are the same at every call."""
        self._loader.get_indices = lambda: [case] * _PATCHES
        self._trainer.network.eval()
        seed_everything(_SEED)
        losses = []
        for _ in range(self._batches):
            batch = self._loader.generate_train_batch()
            whole = torch.equal(batch["data"][0], batch["data"][1])
            losses.append(float(self._trainer.validation_step(batch)["loss"]))
            if whole:
                break
        return float(np.mean(losses))
