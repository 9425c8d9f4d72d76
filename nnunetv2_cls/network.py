"""Networks that plans name: any timm classifier, and nnU-Net's residual encoder with a head.

Plans files store ``nnunetv2_cls.network.timm_classifier`` and
``nnunetv2_cls.network.ResidualEncoderClassifier``: neither may be moved or renamed.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from timm.layers import GroupNormAct
from torch import nn

from nnunetv2_cls.defaults import NORMS
from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.labels import read_classes

_GROUPS = 32
"""Largest number of groups of a GroupNorm, the default of Wu & He 2018, arXiv:1803.08494."""


def timm_classifier(
    input_channels: int, num_classes: int, model_name: str, norm: str = "batch", **kwargs: object
) -> nn.Module:
    """Build a timm classifier without pretrained weights.

    Parameters
    ----------
    input_channels
        Number of channels of the dataset's images.
    num_classes
        Number of outputs of the head.
    model_name
        Name of a model in ``timm.list_models()``, for example ``resnet50``.
    norm
        ``batch`` keeps the model's normalisation; ``group`` turns every BatchNorm into a GroupNorm.
    **kwargs
        Further arguments of ``timm.create_model``.

    Raises
    ------
    ClsError
        If timm has no such model, or ``norm`` is unknown.
    """
    check_model(model_name)
    check_norm(norm)
    network: nn.Module = timm.create_model(
        model_name, pretrained=False, in_chans=input_channels, num_classes=num_classes, **kwargs
    )
    return batch_to_group_norm(network) if norm == "group" else network


def check_model(model_name: str) -> None:
    """Raise ``ClsError`` unless timm has the model."""
    if not timm.is_model(model_name):
        near = timm.list_models(f"*{model_name.split('_', maxsplit=1)[0]}*")[:5]
        raise ClsError(
            f"--model {model_name}: timm has no such model"
            f"{'; it has ' + ', '.join(near) if near else ''} (timm.list_models() names all)."
        )


def check_norm(norm: str) -> None:
    """Raise ``ClsError`` unless the norm is known."""
    if norm not in NORMS:
        raise ClsError(f"--norm {norm}: must be one of {', '.join(NORMS)}.")


def batch_to_group_norm(network: nn.Module) -> nn.Module:
    """Replace every BatchNorm by a GroupNorm with the same affine weights, in place."""
    for name, child in network.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):  # of 1, 2 and 3 dimensions
            setattr(network, name, _group_norm(child))
        else:
            batch_to_group_norm(child)
    return network


def _group_norm(batch: nn.modules.batchnorm._BatchNorm) -> nn.Module:
    groups = next(g for g in range(_GROUPS, 0, -1) if batch.num_features % g == 0)
    group: nn.GroupNorm
    if hasattr(batch, "act"):  # timm's norm with an activation
        group = GroupNormAct(batch.num_features, group_size=batch.num_features // groups)
        group.act, group.drop = batch.act, batch.drop
    else:
        group = nn.GroupNorm(groups, batch.num_features, eps=batch.eps, affine=batch.affine)
    if batch.affine:
        with torch.no_grad():
            group.weight.copy_(batch.weight)
            group.bias.copy_(batch.bias)
    return group


class ResidualEncoderClassifier(nn.Module):
    """nnU-Net's residual encoder, global average pooling and a linear head; 2D or 3D.

    Parameters
    ----------
    input_channels
        Number of channels of the dataset's images.
    num_classes
        Number of outputs of the head.
    **encoder
        Arguments of ``ResidualEncoder``, which is the encoder of ``ResidualEncoderUNet``.
    """

    def __init__(self, input_channels: int, num_classes: int, **encoder: object) -> None:
        super().__init__()
        self.encoder = ResidualEncoder(input_channels, return_skips=False, **encoder)
        self.head = nn.Linear(self.encoder.output_channels[-1], num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits, shape (batch, classes)."""
        deepest = self.encoder(images)
        logits: torch.Tensor = self.head(deepest.flatten(2).mean(2))
        return logits


def build_network(
    configuration: ConfigurationManager, input_channels: int, num_classes: int
) -> nn.Module:
    """Build the network of a configuration, freshly initialised."""
    network: nn.Module = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        input_channels,
        num_classes,
    )
    return network


def configured_network(
    plans: PlansManager, configuration: str, dataset_json: dict[str, Any]
) -> nn.Module:
    """Build the network that a configuration trains on a dataset, freshly initialised."""
    manager = plans.get_configuration(configuration)
    channels = determine_num_input_channels(plans, manager, dataset_json)
    return build_network(manager, channels, len(read_classes(dataset_json)))
