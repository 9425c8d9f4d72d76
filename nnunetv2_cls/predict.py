"""Classify new images with trained folds."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunetv2_cls.cam import activation_map
from nnunetv2_cls.dataset import read_classes
from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.inputs import find_inputs
from nnunetv2_cls.loader import batches
from nnunetv2_cls.metrics import Probabilities, predict_classes
from nnunetv2_cls.plots import plot_activation
from nnunetv2_cls.preprocess import Expected, preprocessed_images
from nnunetv2_cls.trainer import build_network
from nnunetv2_cls.validation import classify


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


def predict_folder(
    model: Model, images: Path, output: Path, *, mirror: bool = True, cam: bool = False
) -> dict[str, str]:
    """Classify every case of a folder; write ``predictions.csv`` and ``predictions.json``.

    Parameters
    ----------
    model
        From :func:`load_model`.
    images
        Raw images, named as in ``imagesTs``; for a model of PNG images also in any other way, and
        of any kind that conversion takes.
    output
        Made if need be.
    mirror
        Average over mirror images.
    cam
        Also write ``cam/CASE.png``, where the evidence for the class was seen.

    Returns
    -------
    dict
        Cases that could not be read, and why.

    Raises
    ------
    ClsError
        If the folder has no case, or images that the model does not take.
    """
    expected = Expected.of(model.plans, model.configuration, model.dataset_json)
    inputs = find_inputs(images, model.dataset_json["file_ending"], expected)
    unreadable = inputs.unreadable

    def note(case: str, error: Exception) -> None:
        unreadable[case] = f"{type(error).__name__}: {error}"

    device = next(model.folds[0][0].parameters()).device
    found: dict[str, list[float]] = {}
    readable = preprocessed_images(
        inputs.files,
        model.plans,
        model.configuration,
        model.dataset_json,
        note,
        converted=inputs.converted,
    )
    for names, fitted in batches(readable, model.configuration):
        batch = fitted.to(device)
        folds = [
            classify(network, batch, axes if mirror else None) for network, axes in model.folds
        ]
        probabilities = np.mean(folds, axis=0)
        found.update(zip(names, probabilities.tolist(), strict=True))
        for i, case in enumerate(names if cam else ()):
            one = slice(i, i + 1)
            _save_cam(model, case, batch[one], probabilities[one], output / "cam")
    write_predictions(found, model.classes, model.threshold, output)
    return unreadable


def _save_cam(
    model: Model, case: str, batch: torch.Tensor, probabilities: Probabilities, folder: Path
) -> None:
    """Write the mean map of the folds for the predicted class."""
    target = int(predict_classes(probabilities, model.threshold)[0])
    maps = [activation_map(network, batch, target) for network, _ in model.folds]
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{model.classes[target]} {probabilities[0, target]:.2f}"
    plot_activation(batch[0].cpu().numpy(), np.mean(maps, axis=0), title, folder / f"{case}.png")


def write_predictions(
    found: dict[str, list[float]], classes: Sequence[str], threshold: float, output: Path
) -> None:
    """Write a table and the same as JSON."""
    output.mkdir(parents=True, exist_ok=True)
    predicted = (
        predict_classes(np.array(list(found.values())), threshold) if found else np.empty(0, int)
    )
    with (output / "predictions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["case", "class", *(f"probability_{name}" for name in classes)])
        for (case, probabilities), index in zip(found.items(), predicted, strict=True):
            table.writerow([case, classes[index], *(f"{p:.6f}" for p in probabilities)])
    content = {
        "classes": list(classes),
        "threshold": threshold if len(classes) == 2 else None,
        "cases": {
            case: {"class": classes[index], "probabilities": probabilities}
            for (case, probabilities), index in zip(found.items(), predicted, strict=True)
        },
    }
    (output / "predictions.json").write_text(json.dumps(content, indent=2))
