"""The sum of clipped gradients, one of each patient, and its release with noise."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

_BELOW = 1 - 1e-5
"""Share of the bound to which is clipped, since float32 rounds a clipped vector above it."""
_PIECE = 2**16
"""Values whose norm is taken at once. A float32 norm of millions of values on a CPU is too small:
by 4e-5 of two million, by 2e-3 of thirty million."""


class ClippedSum:
    """Stands where a trainer's ``train_step`` has its optimizer, and adds up gradients.

    ``step`` takes the present gradient of one patient, clips it to a norm of ``clip`` and adds it.
    No weight changes. :meth:`release` then turns the sum into a gradient with noise. Together that
    is the Gaussian mechanism of DP-SGD (Abadi et al. 2016, arXiv:1607.00133, algorithm 1): one
    patient more or less changes the sum by a vector of norm ``clip`` at most.

    Parameters
    ----------
    parameters
        Parameters that are trained; those that need no gradient, or are listed twice, are left out.
    clip
        Largest norm (L2, over all parameters) of what one patient adds.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], clip: float) -> None:
        self._parameters = [p for p in dict.fromkeys(parameters) if p.requires_grad]
        self._clip = clip
        self.param_groups: list[dict[str, Any]] = [{"params": self._parameters}]
        """Groups that a trainer or a gradient scaler finds, as in an optimizer of torch."""
        self.sums = [torch.zeros_like(p, dtype=torch.float32) for p in self._parameters]
        """Sum of the clipped gradients of each parameter."""
        self.steps = 0
        """How often ``step`` was called."""
        self.not_finite = 0
        """Number of gradients that were left out because they were not finite."""
        self.zero_grad()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the parameters, as torch's optimizers do."""
        del set_to_none
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Clip the present gradient, add it to the sum, and forget it.

        A gradient that is not finite adds nothing: NaN would pass any clipping, and leaving the
        whole sum out would tell that there was one.
        """
        self.steps += 1
        present = [(s, p.grad) for s, p in zip(self.sums, self._parameters, strict=True)]
        gradients = [(s, gradient) for s, gradient in present if gradient is not None]
        norm = norm_of(gradient for _, gradient in gradients)
        if math.isfinite(norm):
            share = min(1.0, self._clip * _BELOW / norm) if norm > 0 else 1.0
            for total, gradient in gradients:
                total.add_(gradient, alpha=share)
        else:
            self.not_finite += 1
        self.zero_grad()

    @torch.no_grad()
    def release(self, noise_multiplier: float, expected: float, generator: torch.Generator) -> None:
        """Write ``(sum + noise_multiplier * clip * N(0, 1)) / expected`` into every gradient.

        Every parameter gets noise, also one without a gradient: whether a patient gives it one may
        depend on him.

        Parameters
        ----------
        noise_multiplier
            Standard deviation of the noise in units of ``clip``.
        expected
            Number of patients to divide by. It is the expected one; the number that was drawn
            would tell whether a patient was among them.
        generator
            Generator of the noise, on the parameters' device.
        """
        deviation = noise_multiplier * self._clip
        for parameter, total in zip(self._parameters, self.sums, strict=True):
            noise = torch.randn(
                total.shape, generator=generator, device=total.device, dtype=torch.float32
            )
            released = noise.mul_(deviation).add_(total).div_(expected)
            parameter.grad = released.to(parameter.dtype)


def norm_of(tensors: Iterable[torch.Tensor]) -> float:
    """Return the norm (L2) of all values of some tensors, in float64 over pieces in float32."""
    pieces = [
        torch.linalg.vector_norm(piece, dtype=torch.float32)
        for tensor in tensors
        for piece in torch.split(tensor.reshape(-1), _PIECE)
    ]
    return float(torch.stack(pieces).double().norm()) if pieces else 0.0
