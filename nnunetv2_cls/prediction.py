"""Classify new images with trained folds."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from nnunetv2_cls.cam import activation_map
from nnunetv2_cls.inference import Model, classify
from nnunetv2_cls.inputs import find_inputs
from nnunetv2_cls.loader import batches
from nnunetv2_cls.metrics import Probabilities, predict_classes
from nnunetv2_cls.plots import plot_activation
from nnunetv2_cls.preprocess import Expected, preprocessed_images


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
