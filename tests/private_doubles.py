"""Tiny networks of each kind, with a trainer around them that has nnU-Net's ``train_step`` only."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn

from nnunetv2_cls.network import timm_classifier
from nnunetv2_federated.nnunet.privacy.private_steps import PrivateSteps
from nnunetv2_federated.nnunet.privacy.private_training import PrivateTraining

Batch = dict[str, Any]
"""What a training loader yields."""

CPU = torch.device("cpu")
LABELS: dict[str, tuple[dict[str, Any], list[int] | None]] = {
    "labels": ({"background": 0, "a": 1, "b": 2}, None),
    "ignore": ({"background": 0, "a": 1, "b": 2, "ignore": 3}, None),
    "regions": ({"background": 0, "whole": [1, 2], "core": [2]}, [1, 2]),
    "regions and ignore": ({"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}, [1, 2]),
}
"""Labels of a dataset and, of regions, their order."""


class Recorder(torch.optim.SGD):
    """SGD that keeps the gradients of its last step."""

    seen: list[torch.Tensor]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        self.seen = [
            torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for group in self.param_groups
            for p in group["params"]
        ]


class Bare(nnUNetTrainer):
    """nnU-Net's ``train_step`` and loss, without a dataset."""

    def __init__(self, network: nn.Module, loss: Any = None, **sgd: Any) -> None:
        self.device, self.is_ddp, self.is_cascaded = CPU, False, False
        self.network, self.grad_scaler = network, None
        self.optimizer = Recorder(network.parameters(), **{"lr": 0.01, **sgd})
        self.loss = loss


class PrivateBare(PrivateSteps, Bare):
    """The same with private steps."""


def unet(kind: str, dimensions: int, outputs: int) -> nn.Module:
    """Build nnU-Net's network of a thousand weights or two, with deep supervision."""
    torch.manual_seed(1)
    conv, norm = (
        (nn.Conv2d, nn.InstanceNorm2d) if dimensions == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    )
    blocks = {"n_conv_per_stage": [1] * 3} if kind == "plain" else {"n_blocks_per_stage": [1] * 3}
    network: nn.Module = (PlainConvUNet if kind == "plain" else ResidualEncoderUNet)(
        input_channels=1,
        n_stages=3,
        features_per_stage=[2, 4, 4],
        conv_op=conv,
        kernel_sizes=3,
        strides=[1, 2, 2],
        num_classes=outputs,
        n_conv_per_stage_decoder=[1, 1],
        conv_bias=True,
        norm_op=norm,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
        **blocks,
    )
    return network


def segmentation(
    kind: str, dimensions: int, labels: str, *, batch_dice: bool = True, **sgd: Any
) -> PrivateBare:
    """Build a private trainer with nnU-Net's own loss for labels, regions and an ignore label."""
    manager = LabelManager(*LABELS[labels])
    trainer = PrivateBare(unet(kind, dimensions, manager.num_segmentation_heads), **sgd)
    trainer.label_manager = manager
    trainer.configuration_manager = SimpleNamespace(
        batch_dice=batch_dice, pool_op_kernel_sizes=[[1] * dimensions, *[[2] * dimensions] * 2]
    )
    trainer.enable_deep_supervision = True
    trainer.loss = trainer._build_loss()
    return trainer


def classification(model: str, **sgd: Any) -> PrivateBare:
    """Build a private trainer of a timm classifier with GroupNorm."""
    torch.manual_seed(1)
    network = timm_classifier(1, 2, model, norm="group")
    return PrivateBare(network, nn.CrossEntropyLoss(), **sgd)


def patches(dimensions: int, labels: str, number: int, seed: int) -> Batch:
    """Make a batch as nnU-Net's loader does: images, and masks of three resolutions."""
    rng = np.random.default_rng(seed)
    size = 16 if dimensions == 2 else 8
    image = rng.normal(size=(number, 1, *[size] * dimensions)).astype(np.float32)
    # each patient has another share of ignored voxels, and the last of a batch no foreground
    values = rng.integers(0, 3, image.shape)
    values[-1] = 0
    if "ignore" in labels:
        values[rng.uniform(size=values.shape) < 0.1 + 0.15 * (seed % 5)] = 3
    if "regions" in labels:
        channels = [np.isin(values, ids) for ids in ([1, 2], [2], [3])]
        mask = np.concatenate(channels[: 3 if "ignore" in labels else 2], 1)
    else:
        mask = values.astype(np.int16)
    target = [
        torch.from_numpy(mask)[(slice(None), slice(None), *[slice(None, None, step)] * dimensions)]
        for step in (1, 2, 4)
    ]
    return {"data": torch.from_numpy(image), "target": target, "keys": [f"p{seed}"] * number}


def images(number: int, seed: int) -> Batch:
    """Make a batch as the loader of ``nnunetv2_cls`` does."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "data": torch.randn(number, 1, 32, 32, generator=generator),
        "target": torch.full((number,), seed % 2),
        "keys": [f"p{seed}"] * number,
    }


def privacy(**given: Any) -> PrivateTraining:
    """Return private training that clips to 0.05, without noise or division."""
    usual = {"clip": 0.05, "expected_batch": 1, "patches": 2, "noise_multiplier": 0.0}
    return PrivateTraining(**{**usual, "probability": 1.0, "patients": {"p0": ("p0",)}, **given})


def released(trainer: PrivateBare, batches: Sequence[Batch], **given: Any) -> torch.Tensor:
    """Take a private step; return the gradient that the optimizer got, in one vector of float64."""
    trainer.privacy = privacy(**given)
    # validation and training change what is in a batch
    trainer.train_step({"patients": iter(copy.deepcopy(list(batches)))})
    return torch.cat([gradient.reshape(-1).double() for gradient in trainer.optimizer.seen])


def clipped_by_hand(trainer: Bare, batch: Batch, clip: float) -> torch.Tensor:
    """Return the clipped gradient of one patient by plain autograd, in one vector of float64."""
    network = copy.deepcopy(trainer.network)
    network.train()
    loss = trainer.loss(network(batch["data"]), copy.deepcopy(batch["target"]))
    weights = list(network.parameters())
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    vector = torch.cat(
        [
            torch.zeros(w.numel(), dtype=torch.float64) if g is None else g.reshape(-1).double()
            for w, g in zip(weights, gradients, strict=True)
        ]
    )
    return vector * min(1.0, clip / float(vector.norm()))
