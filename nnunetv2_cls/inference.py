"""Trained classifiers, and the probabilities that they give to images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.labels import read_classes
from nnunetv2_cls.loader import NamedImage, batches
from nnunetv2_cls.metrics import Probabilities
from nnunetv2_cls.network import configured_network


@dataclass(frozen=True)
class Fold:
    """One trained network of a classifier."""

    network: nn.Module
    """In evaluation mode."""
    mirror_axes: tuple[int, ...] = ()
    """Spatial axes along which an image may be mirrored."""


class ClassifiedBatch(NamedTuple):
    """Images as a classifier saw them, and the probabilities that it gave them."""

    cases: list[str]
    images: torch.Tensor
    """Shape (cases, channels, size...), on the classifier's device."""
    probabilities: Probabilities


@dataclass(frozen=True)
class Classifier:
    """Trained folds of one configuration, whose probabilities are averaged."""

    plans: PlansManager
    configuration_name: str
    dataset_json: dict[str, Any]
    folds: tuple[Fold, ...]
    threshold: float = 0.5
    """Probability of class 1 from which a case is positive; of two classes only."""

    @property
    def configuration(self) -> Any:  # noqa: ANN401  # nnU-Net's ConfigurationManager
        """Configuration of the plans that the networks were trained with."""
        return self.plans.get_configuration(self.configuration_name)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by index."""
        return read_classes(self.dataset_json)

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return next(self.folds[0].network.parameters()).device

    def classify_batches(
        self, images: Iterable[NamedImage], *, mirror: bool = True
    ) -> Iterator[ClassifiedBatch]:
        """Classify preprocessed images, in batches of the configuration's batch size.

        Parameters
        ----------
        images
            Case name, and image of shape (channels, z, y, x), of each case.
        mirror
            Average over the mirror images that each fold allows.
        """
        device = self.device
        for cases, fitted in batches(images, self.configuration):
            batch = fitted.to(device)
            folds = [
                classify(fold.network, batch, fold.mirror_axes if mirror else ())
                for fold in self.folds
            ]
            yield ClassifiedBatch(cases, batch, np.mean(folds, axis=0))

    def classify_images(self, images: Iterable[NamedImage]) -> dict[str, list[float]]:
        """Return the probabilities of each case's classes; parameters as above."""
        return {
            case: probabilities
            for batch in self.classify_batches(images)
            for case, probabilities in zip(batch.cases, batch.probabilities.tolist(), strict=True)
        }


def load_classifier(
    folder: Path,
    configuration: str,
    folds: Sequence[int | str],
    checkpoint: str,
    device: torch.device,
) -> Classifier:
    """Load trained folds.

    The threshold is the mean of the folds' thresholds, each chosen on the fold's validation cases.

    Parameters
    ----------
    folder
        Model folder, ``nnUNet_results/<Dataset>/<Trainer>__<Plans>__<configuration>``.
    configuration
        Configuration, such as ``2d_cls``.
    folds
        Folds whose probabilities are averaged.
    checkpoint
        File name of the checkpoint in each fold's folder, such as ``checkpoint_final.pth``.
    device
        Device to move the networks to.

    Raises
    ------
    ClsError
        If the folder holds no trained classifier, or a fold is missing.
    """
    if not (folder / "plans.json").is_file():
        raise ClsError(f"{folder} holds no trained model: check -d, -tr, -p and -c.")
    plans = PlansManager(load_json(str(folder / "plans.json")))
    dataset_json = load_json(str(folder / "dataset.json"))
    read_classes(dataset_json)  # refuses a model that segments
    loaded, thresholds = [], []
    for fold in folds:
        path = folder / f"fold_{fold}" / checkpoint
        if not path.is_file():
            raise ClsError(
                f"{path} does not exist: train fold {fold} first, or leave it out of -f."
            )
        # a model that the user trained; nnU-Net's checkpoints hold NumPy scalars
        content = torch.load(path, map_location="cpu", weights_only=False)
        network = configured_network(plans, configuration, dataset_json)
        network.load_state_dict(content["network_weights"])
        axes = tuple(content["inference_allowed_mirroring_axes"] or ())
        loaded.append(Fold(network.eval().to(device), axes))
        summary = path.parent / "validation" / "summary.json"
        thresholds.append(load_json(str(summary))["threshold"] if summary.is_file() else 0.5)
    return Classifier(plans, configuration, dataset_json, tuple(loaded), float(np.mean(thresholds)))


@torch.inference_mode()
def classify(
    network: nn.Module,
    images: torch.Tensor,
    mirror_axes: Sequence[int],
) -> Probabilities:
    """Return the mean softmax of images and their mirror images.

    Parameters
    ----------
    network
        Network in evaluation mode.
    images
        Shape (batch, channels, size...), on the network's device.
    mirror_axes
        Spatial axes to mirror, one at a time; empty for none.
    """
    views = [images] + [images.flip(axis + 2) for axis in mirror_axes]
    with torch.autocast(images.device.type, enabled=images.device.type == "cuda"):
        probabilities = [network(view).float().softmax(1) for view in views]
    return torch.stack(probabilities).mean(0).cpu().numpy().astype(np.float64)
