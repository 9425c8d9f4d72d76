"""What a private step costs beside forward and backward of as many images at once, in CPU time.

``python benchmarks/private_steps.py`` measures nnU-Net's networks with nnU-Net's loss in one run,
the two in turn, and prints one table. The private step is the whole of it: each patient through
``train_step`` with one patch, clipping, noise and the optimizer.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunetv2_federated.nnunet.privacy.private_steps import PrivateSteps
from nnunetv2_federated.nnunet.privacy.private_training import PrivateTraining

GOAL = 1.4
ROWS: tuple[tuple[str, type, dict[str, Any], tuple[int, ...], int], ...] = (
    ("PlainConvUNet", PlainConvUNet, {"n_conv_per_stage": 2}, (64, 64), 16),
    ("ResidualEncoderUNet", ResidualEncoderUNet, {"n_blocks_per_stage": 2}, (64, 64), 16),
    ("PlainConvUNet", PlainConvUNet, {"n_conv_per_stage": 2}, (32, 32, 32), 8),
)
"""Name, network, its blocks, size of the images, and number of patients of a step."""


class Private(PrivateSteps, nnUNetTrainer):
    """nnU-Net's ``train_step`` with private steps, without a dataset."""

    def __init__(self, network: nn.Module, loss: nn.Module, privacy: PrivateTraining) -> None:
        self.device = torch.device("cpu")
        self.network, self.loss, self.grad_scaler, self.privacy = network, loss, None, privacy
        self.optimizer = torch.optim.SGD(
            network.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=3e-5
        )


def build(kind: type, blocks: dict[str, int], dimensions: int) -> nn.Module:
    """Build a network of nnU-Net as it plans them for such images, for one channel and label."""
    features = [32, 64, 128, 256] if dimensions == 2 else [32, 64, 128]
    network: nn.Module = kind(
        input_channels=1,
        n_stages=len(features),
        features_per_stage=features,
        conv_op=nn.Conv2d if dimensions == 2 else nn.Conv3d,
        kernel_sizes=3,
        strides=[1] + [2] * (len(features) - 1),
        num_classes=2,
        n_conv_per_stage_decoder=2 if "n_conv_per_stage" in blocks else 1,
        conv_bias=True,
        norm_op=nn.InstanceNorm2d if dimensions == 2 else nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
        **blocks,
    )
    return network


def nnunet_loss(outputs: int) -> nn.Module:
    """Return nnU-Net's loss with deep supervision of some resolutions."""
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
    return DeepSupervisionWrapper(loss, [0.5**i for i in range(outputs - 1)] + [0.0])  # type: ignore[no-any-return]


def patch(size: tuple[int, ...], outputs: int) -> dict[str, Any]:
    """Return a batch with one patch of noise."""
    target = [torch.randint(0, 2, (1, 1, *(n >> i for n in size))) for i in range(outputs)]
    return {"data": torch.randn(1, 1, *size), "target": target}


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(
    kind: type, blocks: dict[str, int], size: tuple[int, ...], patients: int, repeats: int
) -> tuple[int, float, float]:
    """Return the number of parameters, and median CPU seconds of the plain and private work."""
    network = build(kind, blocks, len(size))
    outputs = 3 if len(size) == 2 else 2
    loss = nnunet_loss(outputs)
    batches = [patch(size, outputs) for _ in range(patients)]
    data = torch.cat([batch["data"] for batch in batches])
    target = [torch.cat([b["target"][i] for b in batches]) for i in range(outputs)]
    trainer = Private(
        network,
        loss,
        PrivateTraining(
            clip=1.0,
            expected_batch=patients,
            patches=1,
            noise_multiplier=1.0,
            probability=1.0,
            patients={"one": ("case",)},
        ),
    )

    def plain() -> None:
        network.zero_grad()
        loss(network(data), target).backward()

    def private() -> None:
        trainer.train_step({"patients": iter(batches)})

    pairs = [(cpu_seconds(plain), cpu_seconds(private)) for _ in range(repeats + 1)][1:]
    parameters = sum(p.numel() for p in network.parameters())
    first, second = (statistics.median(times) for times in zip(*pairs, strict=True))
    return parameters, first, second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="measurements, of which the median")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"goal: at most {GOAL} times forward and backward of as many images at once")
    print("| network | image | parameters | patients | forward, backward | private step | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, kind, blocks, size, patients in ROWS:
        parameters, plain, private = measure(kind, blocks, size, patients, args.repeats)
        print(
            f"| {name} | {'x'.join(map(str, size))} | {parameters / 1e6:.2f} M | {patients} "
            f"| {1000 * plain:.0f} ms | {1000 * private:.0f} ms | {private / plain:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
