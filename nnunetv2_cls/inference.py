"""Trained folds, and the probabilities that they give an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.labels import read_classes
from nnunetv2_cls.metrics import Probabilities
from nnunetv2_cls.network import build_network


@dataclass(frozen=True)
class Model:
    """Trained folds of one model folder."""

    plans: PlansManager
    configuration: Any
    """nnU-Net's ConfigurationManager."""
    dataset_json: dict[str, Any]
    classes: tuple[str, ...]
    folds: tuple[tuple[nn.Module, tuple[int, ...]], ...]
    """Network, and the axes it may be mirrored along."""
    threshold: float
    """Mean of the folds', each chosen on its validation cases."""


def load_model(
    folder: Path,
    configuration: str,
    folds: Sequence[int | str],
    checkpoint: str,
    device: torch.device,
) -> Model:
    """Load trained folds.

    Parameters
    ----------
    folder
        ``nnUNet_results/<Dataset>/<Trainer>__<Plans>__<configuration>``.
    configuration
        Such as ``2d_cls``.
    folds
        To ensemble.
    checkpoint
        File name, such as ``checkpoint_final.pth``.
    device
        Where the networks go.

    Raises
    ------
    ClsError
        If the folder holds no trained classifier, or a fold is missing.
    """
    if not (folder / "plans.json").is_file():
        raise ClsError(f"{folder} holds no trained model: check -d, -tr, -p and -c.")
    plans = PlansManager(load_json(str(folder / "plans.json")))
    dataset_json = load_json(str(folder / "dataset.json"))
    manager = plans.get_configuration(configuration)
    classes = read_classes(dataset_json)
    loaded, thresholds = [], []
    for fold in folds:
        path = folder / f"fold_{fold}" / checkpoint
        if not path.is_file():
            raise ClsError(
                f"{path} does not exist: train fold {fold} first, or leave it out of -f."
            )
        # a model the user trained; nnU-Net's checkpoints hold NumPy scalars
        content = torch.load(path, map_location="cpu", weights_only=False)
        network = build_network(plans, configuration, dataset_json)
        network.load_state_dict(content["network_weights"])
        axes = tuple(content["inference_allowed_mirroring_axes"] or ())
        loaded.append((network.eval().to(device), axes))
        summary = path.parent / "validation" / "summary.json"
        thresholds.append(load_json(str(summary))["threshold"] if summary.is_file() else 0.5)
    return Model(plans, manager, dataset_json, classes, tuple(loaded), float(np.mean(thresholds)))


@torch.inference_mode()
def classify(
    network: nn.Module,
    images: torch.Tensor,
    mirror_axes: Sequence[int] | None,
) -> Probabilities:
    """Mean softmax over the image and its mirror images.

    Parameters
    ----------
    network
        In evaluation mode.
    images
        Shape (batch, channels, size...), on the network's device.
    mirror_axes
        Spatial axes to mirror, one at a time; ``None`` or empty for none.
    """
    views = [images] + [images.flip(axis + 2) for axis in mirror_axes or ()]
    with torch.autocast(images.device.type, enabled=images.device.type == "cuda"):
        probabilities = [network(view).float().softmax(1) for view in views]
    return torch.stack(probabilities).mean(0).cpu().numpy().astype(np.float64)
