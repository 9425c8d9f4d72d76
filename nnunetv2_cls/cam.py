"""Class-activation maps, which show where in an image the evidence for a class is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nnunetv2_cls.errors import ClsError


def check_captum() -> None:
    """Raise ``ClsError`` unless captum, an optional dependency, is installed."""
    try:
        import captum  # noqa: F401, PLC0415
    except ImportError as error:
        raise ClsError('--cam needs captum: pip install "nnunetv2-federated[cam]".') from error


def activation_map(network: nn.Module, image: torch.Tensor, target: int) -> NDArray[np.float32]:
    """Compute Grad-CAM of the last features (Selvaraju et al. 2017, arXiv:1610.02391, eq. 2).

    Parameters
    ----------
    network
        A timm classifier in evaluation mode.
    image
        Image of shape (1, channels, y, x), on the network's device.
    target
        Index of the class whose evidence is mapped.

    Returns
    -------
    ndarray
        Shape (y, x), from 0 to 1.

    Raises
    ------
    ClsError
        If the network is no timm classifier, or the image is not 2D.
    """
    from captum.attr import LayerAttribution, LayerGradCam  # noqa: PLC0415  # optional

    info: Any = getattr(network, "feature_info", None)
    if not info or image.ndim != 4:
        raise ClsError("--cam is for 2D configurations with a timm model.")
    layer = network.get_submodule(info[-1]["module"])
    small = LayerGradCam(network, layer).attribute(image, target, relu_attributions=True)
    large = LayerAttribution.interpolate(small, tuple(image.shape[2:]), "bilinear")
    values: NDArray[np.float32] = large[0, 0].detach().cpu().numpy()
    return values / values.max() if values.max() > 0 else values
