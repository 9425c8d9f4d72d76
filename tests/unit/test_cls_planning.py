"""Configurations for classification, added to plans."""

from __future__ import annotations

import pytest

from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.planning import NewConfiguration, configuration

PLANS = {
    "configurations": {
        "2d": {"patch_size": [40, 32], "median_image_size_in_voxels": [36.0, 30.0]},
        "3d_fullres": {
            "patch_size": [8, 16, 16],
            "median_image_size_in_voxels": [10.0, 20.0, 20.0],
            "architecture": {
                "arch_kwargs": {
                    "n_stages": 3,
                    "conv_op": "torch.nn.modules.conv.Conv3d",
                    "n_conv_per_stage_decoder": [2, 2],
                }
            },
        },
        "3d_cascade_fullres": {"inherits_from": "3d_fullres"},
    }
}


def test_the_2d_configuration() -> None:
    assert configuration(PLANS, NewConfiguration(model="resnet34")) == {
        "inherits_from": "2d",
        "patch_size": [36, 30],
        "batch_size": 32,
        "architecture": {
            "network_class_name": "nnunetv2_cls.network.timm_classifier",
            "arch_kwargs": {"model_name": "resnet34", "norm": "batch"},
            "_kw_requires_import": [],
        },
    }


def test_the_3d_configuration_takes_the_encoder_of_the_plans() -> None:
    planned = configuration(PLANS, NewConfiguration(parent="3d_fullres", size=(8, 16, 16)))

    assert planned["patch_size"] == [8, 16, 16]
    kwargs = planned["architecture"]["arch_kwargs"]
    assert kwargs == {
        "n_stages": 3,
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "n_blocks_per_stage": (1, 3, 4),
    }
    assert planned["architecture"]["_kw_requires_import"] == ["conv_op"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (NewConfiguration(parent="3d_lowres"), "-c 3d_lowres: the plans have 2d, 3d_fullres"),
        (NewConfiguration(size=(64, 64, 64)), "--size 64 64 64: give 2 numbers"),
        (NewConfiguration(size=(4, 4)), "--size 4 4"),
        (NewConfiguration(batch_size=1), "--batch-size 1"),
        (NewConfiguration(model="resnet17"), "--model resnet17: timm has no such model"),
        (NewConfiguration(norm="layer"), "--norm layer"),
    ],
)
def test_a_bad_plan_is_one_line(wanted: NewConfiguration, message: str) -> None:
    with pytest.raises(ClsError, match=message):
        configuration(PLANS, wanted)
