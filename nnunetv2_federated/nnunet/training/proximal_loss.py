"""FedProx: a loss that keeps a site's weights near the global weights of the round."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class ProximalLoss(nn.Module):
    """FedProx: ``loss + mu / 2 * ||w - w_received||^2`` (Li et al. 2018, arXiv:1812.06127, eq. 2).

    The term is part of training only; under ``torch.no_grad`` the loss is nnU-Net's own.

    Parameters
    ----------
    loss
        Loss of the trainer.
    network
        Network that is trained. Its weights when this is built are ``w_received``.
    mu
        Weight of the proximal term.
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

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Add the term's own gradient, ``mu * (w - w_received)``, to gradients that there are."""
        for weights, received in zip(self._weights, self._received, strict=True):
            if weights.grad is not None:
                weights.grad.add_(weights - received, alpha=self.mu)
