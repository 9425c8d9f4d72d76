"""Weights trained elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision

from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.network import timm_classifier
from nnunetv2_cls.pretrained import fit_weights, read_weights


def test_torchvision_weights_fit_a_grey_network(tmp_path: Path) -> None:
    colour = torchvision.models.resnet18(num_classes=1000)
    torch.save(colour.state_dict(), tmp_path / "resnet18.pth")
    network = timm_classifier(1, 2, "resnet18")

    network.load_state_dict(fit_weights(network, read_weights(str(tmp_path / "resnet18.pth"))))

    # a grey pixel is the same value in each of R, G and B: the sum of their weights
    assert torch.allclose(network.conv1.weight, colour.conv1.weight.sum(1, keepdim=True), atol=1e-6)
    assert torch.equal(network.layer4[1].conv2.weight, colour.layer4[1].conv2.weight)
    assert network.fc.weight.shape == (2, 512)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("resnet34", "the weights lack layer1.2"),
        ("resnet50", "of another architecture"),
        ("vgg11", "the weights lack"),
    ],
)
def test_weights_of_another_architecture_are_refused(network: str, message: str) -> None:
    with pytest.raises(ClsError, match=message):
        fit_weights(timm_classifier(1, 2, network), torchvision.models.resnet18().state_dict())


def test_a_smaller_network_than_the_weights_is_refused() -> None:
    with pytest.raises(ClsError, match=r"has no layer1\.2"):
        fit_weights(timm_classifier(1, 2, "resnet18"), torchvision.models.resnet34().state_dict())


def test_weights_that_are_nowhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "no.pth").write_text("no weights")
    with pytest.raises(ClsError, match="cannot be read as weights"):
        read_weights(str(tmp_path / "no.pth"))
    with pytest.raises(ClsError, match="no such file, and no model of timm"):
        read_weights(str(tmp_path / "none.pth"))
