"""Which parameters are trained privately, counted by hand."""

from __future__ import annotations

import pytest
import torch
from private_doubles import PrivateBare, patches, privacy, segmentation, unet
from torch import nn

from nnunetv2_cls.network import ResidualEncoderClassifier, timm_classifier
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.nnunet.privacy.trainable import train_only


def trained(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_norms_of_nnunets_networks_are_scales_and_shifts(kind: str, dimensions: int) -> None:
    network = unet(kind, dimensions, outputs=3)
    names = train_only(network, "norm")
    # plain: one norm of 2, 4 and 4 channels in the encoder, of 4 and 2 in the decoder
    # residual: a stem of 2 and two norms in each block besides, three where the channels change
    channels = (2 + 4 + 4) if kind == "plain" else 2 + 2 * (2 + 4 + 4) + 4
    assert trained(network) == 2 * (channels + 4 + 2)
    assert all(".norm." in name or name.endswith(("norm.weight", "norm.bias")) for name in names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_the_head_of_nnunets_networks_is_the_outputs_of_all_resolutions(kind: str) -> None:
    network = unet(kind, 2, outputs=3)
    names = train_only(network, "head")
    assert names == [
        f"decoder.seg_layers.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")
    ]
    assert trained(network) == (4 * 3 + 3) + (2 * 3 + 3)
    assert len(train_only(network, "norm, head")) == 4 + len(train_only(network, "norm"))


def test_classifiers_have_norms_and_a_head_too() -> None:
    resnet = timm_classifier(1, 5, "resnet18", norm="group")
    assert train_only(resnet, "head") == ["fc.weight", "fc.bias"]
    assert trained(resnet) == 512 * 5 + 5
    train_only(resnet, "norm")
    # the stem; two a block of two blocks a stage, and one where a stage begins but the first
    assert trained(resnet) == 2 * (64 * 5 + 128 * 5 + 256 * 5 + 512 * 5)
    encoder = ResidualEncoderClassifier(
        1,
        3,
        n_stages=2,
        features_per_stage=[4, 8],
        conv_op=nn.Conv2d,
        kernel_sizes=[[3, 3]] * 2,
        strides=[[1, 1], [2, 2]],
        n_blocks_per_stage=[1, 1],
    )
    assert train_only(encoder, "head") == ["head.weight", "head.bias"]
    assert train_only(timm_classifier(1, 2, "test_efficientnet"), "head") == [
        "classifier.weight",
        "classifier.bias",
    ]


def test_a_pattern_is_looked_for_in_the_names_and_all_means_all() -> None:
    network = unet("plain", 2, outputs=3)
    names = train_only(network, "encoder.stages.0.*")
    assert names
    assert all(name.startswith("encoder.stages.0.") for name in names)
    assert len(train_only(network, "all")) == len(list(network.parameters()))


def test_a_compiled_network_has_the_same_names() -> None:
    network = unet("plain", 2, outputs=3)
    names = train_only(network, "norm,head")
    assert train_only(torch.compile(network), "norm,head") == names  # type: ignore[arg-type]
    assert train_only(torch.compile(network), "encoder*") != names  # type: ignore[arg-type]
    assert all(p.requires_grad == n.startswith("encoder") for n, p in network.named_parameters())


def test_what_fits_nothing_is_refused_with_names_that_there_are() -> None:
    network = unet("plain", 2, outputs=3)
    with pytest.raises(
        SettingsError, match=r"--dp-trainable decodr fits no parameter.*encoder\.st"
    ):
        train_only(network, "decodr")
    with pytest.raises(SettingsError, match=r"--dp-trainable \( fits no parameter"):
        train_only(network, "norm,(")
    for endless in ("(.+)+!", "*".join("a" * 100)):  # as regular expressions they never end
        with pytest.raises(SettingsError, match="fits no parameter"):
            train_only(network, endless)
    with pytest.raises(SettingsError, match="--dp-trainable head fits no parameter"):
        train_only(nn.Sequential(nn.Linear(2, 2)), "head")
    with pytest.raises(SettingsError, match="--dp-trainable  fits no parameter"):
        train_only(network, "")
    assert all(p.requires_grad for p in network.parameters())


def test_frozen_weights_stay_and_trained_ones_have_noise() -> None:
    trainer: PrivateBare = segmentation("plain", 2, "labels", lr=1.0, weight_decay=0.1)
    names = set(train_only(trainer.network, "norm"))
    before = {n: p.detach().clone() for n, p in trainer.network.named_parameters()}
    trainer.privacy = privacy(noise_multiplier=1.0)
    trainer.train_step({"patients": iter([patches(2, "labels", 2, 0)])})
    changed = {n for n, p in trainer.network.named_parameters() if not torch.equal(p, before[n])}
    assert changed == names
