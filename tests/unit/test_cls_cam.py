"""Class-activation maps."""

from __future__ import annotations

import torch
from torch import nn

from nnunetv2_cls.cam import activation_map


def test_the_activation_map_shows_where_the_evidence_is() -> None:
    class Brightness(nn.Module):
        """Evidence for class 1 is brightness: one feature, the image at half size."""

        feature_info = ({"module": "features"},)

        def __init__(self) -> None:
            super().__init__()
            self.features = nn.AvgPool2d(2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            bright = self.features(images).mean((1, 2, 3))
            return torch.stack([-bright, bright], 1)

    image = torch.zeros(1, 1, 16, 16)
    image[..., :8, 8:] = 1

    found = activation_map(Brightness(), image, 1)

    assert found.shape == (16, 16)
    assert found.max() == 1
    assert found[:6, 10:].min() == 1  # the bright quarter
    assert found[10:].max() == 0
    assert activation_map(Brightness(), image, 0).max() == 0
