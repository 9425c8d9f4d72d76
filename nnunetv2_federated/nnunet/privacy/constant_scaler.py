"""A gradient scaler for half precision whose scale no patient can change."""

from __future__ import annotations

from typing import Any

import torch

_SCALE = 2.0**12
"""Factor of the loss. Gradients of a network above 16 overflow in float16 with it; nnU-Net clips
whole gradients to a norm of 12. Those of 1.5e-11 and more do not vanish."""


class ConstantScaler(torch.amp.GradScaler):
    """Gradient scaler with a constant scale, which leaves it to the optimizer what is not finite.

    torch's own scaler halves its scale after a gradient that overflows and doubles it after many
    that do not: one patient would change what is rounded away of the gradients of others.

    Parameters
    ----------
    device
        Type of the device, ``cuda`` or ``cpu``.
    """

    def __init__(self, device: str) -> None:
        super().__init__(device, init_scale=_SCALE)
        self._unscaled = False

    def unscale_(self, optimizer: Any) -> None:  # noqa: ANN401  # ClippedSum is none of torch's
        """Divide the gradients by the scale, as torch does."""
        super().unscale_(optimizer)
        self._unscaled = True

    def step(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Call the optimizer's ``step``, whether or not the gradients are finite."""
        if not self._unscaled:
            self.unscale_(optimizer)
        optimizer.step(*args, **kwargs)

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        """Get ready for the next gradient; the scale stays."""
        del new_scale
        self._unscaled = False
        super().update(_SCALE)
