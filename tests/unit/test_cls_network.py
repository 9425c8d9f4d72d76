"""Networks of classifiers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunetv2_cls.network import ResidualEncoderClassifier, batch_to_group_norm, timm_classifier


@pytest.mark.parametrize("channels", [1, 3])
def test_a_timm_classifier_takes_the_datasets_channels(channels: int) -> None:
    network = timm_classifier(channels, 3, "resnet18")

    assert network(torch.zeros(2, channels, 32, 32)).shape == (2, 3)


def test_batch_norm_becomes_group_norm_everywhere() -> None:
    network = batch_to_group_norm(
        nn.Sequential(nn.BatchNorm2d(48), nn.Sequential(nn.BatchNorm3d(6)))
    )

    assert isinstance(network[0], nn.GroupNorm)
    assert network[0].num_groups == 24  # the largest divisor of 48 up to 32
    assert network[1][0].num_groups == 6
    for model in ("resnet18", "densenet121"):  # norm alone, and norm with activation in one
        converted = timm_classifier(1, 2, model, norm="group").eval()
        assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in converted.modules())
        assert converted(torch.zeros(2, 1, 32, 32)).isfinite().all()


def test_a_3d_classifier_is_nnunets_residual_encoder() -> None:
    network = ResidualEncoderClassifier(
        1,
        4,
        n_stages=2,
        features_per_stage=[4, 8],
        conv_op=nn.Conv3d,
        kernel_sizes=[[3, 3, 3]] * 2,
        strides=[[1, 1, 1], [2, 2, 2]],
        n_blocks_per_stage=[1, 1],
    )

    assert network(torch.zeros(2, 1, 8, 8, 8)).shape == (2, 4)
