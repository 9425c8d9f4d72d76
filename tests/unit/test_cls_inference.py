"""Probabilities over mirror images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nnunetv2_cls.inference import classify


def test_mirroring_averages_probabilities() -> None:
    class LeftHalf(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            left = images[..., :2].flatten(1).mean(1)
            return torch.stack([torch.zeros_like(left), left], 1)

    image = torch.zeros(1, 1, 4, 4)
    image[..., :2] = np.log(3)  # left: probability 3/4; right, seen mirrored: 1/2

    plain, mirrored = (classify(LeftHalf(), image, axes)[0, 1] for axes in ((), (1,)))

    assert plain == pytest.approx(0.75)
    assert mirrored == pytest.approx((0.75 + 0.5) / 2)
