"""The arguments that plans may give to each piece of code: their names, types and bounds.

:data:`REGISTER` lists the code that plans may name, by kind, with its arguments. Everything else is
refused, so that there is no argument for a path, a URL or a checkpoint. The bounds on integers keep
the network small that is built to estimate memory; :mod:`.memory_estimate` decides whether a
training fits the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import timm
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

MOST_AXIS = 8192
"""Largest number of voxels of a patch or image along an axis."""
MOST_BATCH = 100_000
MOST_CHANNELS = 1000
_MOST_STAGES = 16
_MOST_BLOCKS = 128

Types = Mapping[str, Any]
"""Type of each argument, as pydantic reads it."""


@dataclass(frozen=True)
class Code:
    """Marks an argument that names code."""

    kind: str
    """Kind of the code, for example ``norm``."""


@dataclass(frozen=True)
class ArgumentsOf:
    """Marks an argument that holds the arguments of the code that another argument names."""

    argument: str


class _Strict(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )


def _arguments(needed: Types, optional: Types) -> type[BaseModel]:
    """Return a model of arguments; the default of an optional one is never used."""
    fields: dict[str, Any] = {name: (kind, ...) for name, kind in needed.items()}
    fields |= {name: (kind, None) for name, kind in optional.items()}
    return create_model("Arguments", __base__=_Strict, **fields)


def _integer(low: int, high: int) -> Any:  # noqa: ANN401  # an annotation
    return Annotated[int, Field(ge=low, le=high)]


def _real(low: float, high: float) -> Any:  # noqa: ANN401  # an annotation
    return Annotated[float, Field(ge=low, le=high)]


def _list(kind: Any, low: int, high: int) -> Any:  # noqa: ANN401  # an annotation
    return Annotated[list[kind], Field(min_length=low, max_length=high)]


def _registered(name: str) -> str:
    """Refuse names that timm does not list: it also accepts addresses such as ``hf-hub:...``."""
    if not timm.is_model(name):
        raise ValueError("timm has no such model")
    return name


def _few_in_all(blocks: list[int]) -> list[int]:
    if sum(blocks) > _MOST_BLOCKS:
        raise ValueError(f"must be at most {_MOST_BLOCKS} together")
    return blocks


_FEATURES = _integer(1, 16_384)
_BLOCKS = _integer(1, 64)
_SHARE = _real(0, 1)
_PROBABILITY = _real(0, 0.999)
_NUMBER = _real(0, 1e6)
_POSITIVE = _real(1e-6, 1e6)
_KERNEL = _integer(1, 31)
_STRIDE = _integer(1, 16)
_AXIS = _integer(1, MOST_AXIS)
_GIVEN = dict[str, Any]

_FEATURES_BY_STAGE = _FEATURES | _list(_FEATURES, 1, _MOST_STAGES)
_SUM = AfterValidator(_few_in_all)
_BLOCKS_BY_STAGE = _integer(1, 8) | Annotated[_list(_BLOCKS, 1, _MOST_STAGES), _SUM]
_BLOCKS_OF_DECODER = _integer(1, 8) | Annotated[_list(_BLOCKS, 0, _MOST_STAGES), _SUM]
_KERNELS_BY_STAGE = _KERNEL | _list(_KERNEL | _list(_KERNEL, 1, 3), 1, _MOST_STAGES)
_STRIDES_BY_STAGE = _STRIDE | _list(_STRIDE | _list(_STRIDE, 1, 3), 1, _MOST_STAGES)

_ENCODER = {
    "n_stages": _integer(1, _MOST_STAGES),
    "features_per_stage": _FEATURES_BY_STAGE,
    "conv_op": Annotated[str, Code("conv")],
    "kernel_sizes": _KERNELS_BY_STAGE,
    "strides": _STRIDES_BY_STAGE,
}
_ENCODER_MAY = {
    "conv_bias": bool,
    "norm_op": Annotated[str | None, Code("norm")],
    "norm_op_kwargs": Annotated[_GIVEN | None, ArgumentsOf("norm_op")],
    "dropout_op": Annotated[str | None, Code("dropout")],
    "dropout_op_kwargs": Annotated[_GIVEN | None, ArgumentsOf("dropout_op")],
    "nonlin": Annotated[str | None, Code("nonlin")],
    "nonlin_kwargs": Annotated[_GIVEN | None, ArgumentsOf("nonlin")],
}
_RESIDUAL = {**_ENCODER, "n_blocks_per_stage": _BLOCKS_BY_STAGE}
_RESIDUAL_MAY = {
    **_ENCODER_MAY,
    "block": Annotated[str, Code("block")],
    "bottleneck_channels": _FEATURES_BY_STAGE | None,
    "stem_channels": _FEATURES | None,
}
_DECODER = {"n_conv_per_stage_decoder": _BLOCKS_OF_DECODER}

_PLAIN_UNET = _arguments(
    {**_ENCODER, **_DECODER, "n_conv_per_stage": _BLOCKS_BY_STAGE},
    {**_ENCODER_MAY, "deep_supervision": bool, "nonlin_first": bool},
)
_RESIDUAL_UNET = _arguments({**_RESIDUAL, **_DECODER}, {**_RESIDUAL_MAY, "deep_supervision": bool})
_RESIDUAL_CLASSIFIER = _arguments(
    _RESIDUAL,
    {
        **_RESIDUAL_MAY,
        "pool_type": Literal["conv", "avg", "max"],
        "stochastic_depth_p": _PROBABILITY,
        "squeeze_excitation": bool,
        "squeeze_excitation_reduction_ratio": _real(1e-3, 1),
    },
)
_PRIMUS = {
    "embed_dim": _FEATURES,
    "patch_embed_size": _list(_integer(2, 64), 3, 3),
    "input_shape": _list(_AXIS, 3, 3),
}
_PRIMUS_MAY = {
    "eva_depth": _integer(1, 128),
    "eva_numheads": _integer(1, 256),
    "decoder_norm": Annotated[str, Code("norm")],
    "decoder_act": Annotated[str, Code("nonlin")],
    "num_register_tokens": _integer(0, 1024),
    "use_rot_pos_emb": bool,
    "use_abs_pos_embed": bool,
    "mlp_ratio": _real(0.1, 16),
    "drop_path_rate": _PROBABILITY,
    "patch_drop_rate": _PROBABILITY,
    "proj_drop_rate": _PROBABILITY,
    "attn_drop_rate": _PROBABILITY,
    "init_values": _NUMBER | None,
    "scale_attn_inner": bool,
}
_PRIMUS_V3_MAY = {
    **_PRIMUS_MAY,
    "depth_per_level": Annotated[_list(_BLOCKS, 1, 6), _SUM],
    "ch_per_level": _list(_FEATURES, 2, 7),
    "add_skips": bool,
    "nonlin": Annotated[str, Code("nonlin")],
}
_TIMM = {
    "model_name": Annotated[
        str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?$"), AfterValidator(_registered)
    ]
}
_TIMM_MAY = {
    "norm": Literal["batch", "group"],
    "drop_rate": _PROBABILITY,
    "drop_path_rate": _PROBABILITY,
    "global_pool": Literal["avg", "max", "avgmax", "catavgmax", "token", "map"],
    "img_size": _AXIS | _list(_AXIS, 2, 2),
    "dynamic_img_size": bool,
}

LEGACY_NETWORK = _arguments(
    {
        "UNet_class_name": Literal["PlainConvUNet", "ResidualEncoderUNet"],
        "UNet_base_num_features": _FEATURES,
        "unet_max_num_features": _FEATURES,
        "n_conv_per_stage_encoder": Annotated[_list(_BLOCKS, 1, _MOST_STAGES), _SUM],
        "n_conv_per_stage_decoder": Annotated[_list(_BLOCKS, 0, _MOST_STAGES), _SUM],
        "num_pool_per_axis": _list(_integer(0, _MOST_STAGES), 1, 3),
        "pool_op_kernel_sizes": _list(_list(_STRIDE, 1, 3), 1, _MOST_STAGES),
        "conv_kernel_sizes": _list(_list(_KERNEL, 1, 3), 1, _MOST_STAGES),
    },
    {},
)
"""Keys in place of ``architecture`` in plans before nnU-Net 2.4, which nnU-Net converts."""

SIZES = _arguments(
    {
        "patch_size": _list(_AXIS, 2, 3),
        "batch_size": _integer(1, MOST_BATCH),
        "spacing": _list(_real(1e-6, 1e6), 2, 3),
    },
    {
        "median_image_size_in_voxels": _list(_real(0, 1e6), 2, 3),
        "normalization_schemes": _list(str, 1, MOST_CHANNELS),
        "use_mask_for_norm": _list(bool, 1, MOST_CHANNELS),
        "batch_dice": bool,
        "previous_stage": str | None,
        "next_stage": str | _list(str, 0, 10) | None,
        "data_identifier": str,
    },
)
"""Keys of a configuration besides names of code."""

TRANSPOSED = _arguments(
    {},
    {
        "transpose_forward": _list(_integer(0, 2), 3, 3),
        "transpose_backward": _list(_integer(0, 2), 3, 3),
    },
)
"""Keys of plans with the order of the axes."""

_NOTHING = _arguments({}, {})
_IN_PLACE = _arguments({}, {"inplace": bool})
_ALPHA = _arguments({}, {"alpha": _POSITIVE, "inplace": bool})
_NORM = _arguments(
    {},
    {
        "eps": _SHARE,
        "momentum": _SHARE | None,
        "affine": bool,
        "track_running_stats": bool,
    },
)
_DROPOUT = _arguments({}, {"p": _SHARE, "inplace": bool})
_RESAMPLING_MAY = {
    "is_seg": bool,
    "force_separate_z": bool | None,
    "separate_z_anisotropy_threshold": _NUMBER,
}
_INTERPOLATION = Literal["linear", "nearest", "nearest-exact", "area"]

_UNET = "dynamic_network_architectures.architectures.unet"
_PRIMUSES = "dynamic_network_architectures.architectures.primus"
_BLOCK = "dynamic_network_architectures.building_blocks"
_TORCH = "torch.nn.modules"
_RESAMPLING = "nnunetv2.preprocessing.resampling"
_DROPOUTS = (
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "AlphaDropout",
    "FeatureAlphaDropout",
)
_IN_PLACES = ("ReLU", "ReLU6", "SELU", "SiLU", "Mish", "Hardswish")

REGISTER: Mapping[str, Mapping[str, type[BaseModel]]] = {
    "network": {
        f"{_UNET}.PlainConvUNet": _PLAIN_UNET,
        f"{_UNET}.ResidualEncoderUNet": _RESIDUAL_UNET,
        f"{_UNET}.ResidualUNet": _RESIDUAL_UNET,
        f"{_PRIMUSES}.Primus": _arguments(_PRIMUS, _PRIMUS_MAY),
        f"{_PRIMUSES}.PrimusV2": _arguments(_PRIMUS, _PRIMUS_MAY),
        f"{_PRIMUSES}.PrimusV3": _arguments(_PRIMUS, _PRIMUS_V3_MAY),
        "nnunetv2_cls.network.timm_classifier": _arguments(_TIMM, _TIMM_MAY),
        "nnunetv2_cls.network.ResidualEncoderClassifier": _RESIDUAL_CLASSIFIER,
    },
    "conv": {f"{_TORCH}.conv.Conv{d}d": _NOTHING for d in (1, 2, 3)},
    "norm": {
        **{f"{_TORCH}.instancenorm.InstanceNorm{d}d": _NORM for d in (1, 2, 3)},
        **{f"{_TORCH}.batchnorm.BatchNorm{d}d": _NORM for d in (1, 2, 3)},
        f"{_BLOCK}.patch_encode_decode.LayerNormNd": _arguments({}, {"eps": _SHARE}),
    },
    "dropout": {f"{_TORCH}.dropout.{name}": _DROPOUT for name in _DROPOUTS},
    "nonlin": {
        **{f"{_TORCH}.activation.{name}": _IN_PLACE for name in _IN_PLACES},
        **{f"{_TORCH}.activation.{name}": _ALPHA for name in ("ELU", "CELU")},
        **{f"{_TORCH}.activation.{name}": _NOTHING for name in ("Tanh", "Sigmoid")},
        f"{_TORCH}.activation.LeakyReLU": _arguments(
            {}, {"negative_slope": _NUMBER, "inplace": bool}
        ),
        f"{_TORCH}.activation.PReLU": _arguments(
            {}, {"num_parameters": _FEATURES, "init": _NUMBER}
        ),
        f"{_TORCH}.activation.GELU": _arguments({}, {"approximate": Literal["none", "tanh"]}),
        f"{_TORCH}.activation.Softplus": _arguments({}, {"beta": _POSITIVE, "threshold": _NUMBER}),
    },
    "block": {f"{_BLOCK}.residual.{name}": _NOTHING for name in ("BasicBlockD", "BottleneckD")},
    "resampling function": {
        f"{_RESAMPLING}.default_resampling.resample_data_or_seg_to_shape": _arguments(
            {}, {**_RESAMPLING_MAY, "order": _integer(0, 5), "order_z": _integer(0, 5)}
        ),
        f"{_RESAMPLING}.resample_torch.resample_torch_fornnunet": _arguments(
            {},
            {
                **_RESAMPLING_MAY,
                "num_threads": _integer(1, 64),
                "memefficient_seg_resampling": bool,
                "mode": _INTERPOLATION,
                "aniso_axis_mode": _INTERPOLATION,
            },
        ),
        f"{_RESAMPLING}.no_resampling.no_resampling_hack": _NOTHING,
    },
}
"""By kind: the dotted name of each callable, and a model of the arguments it may be given."""
