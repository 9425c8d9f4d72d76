"""Classify new images with trained folds."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from nnunetv2.paths import nnUNet_results

from nnunetv2_cls import defaults
from nnunetv2_cls.cam import activation_map, check_captum
from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.inference import ClassifiedBatch, Classifier, load_classifier
from nnunetv2_cls.inputs import find_inputs
from nnunetv2_cls.labels import find_name
from nnunetv2_cls.metrics import predict_classes
from nnunetv2_cls.plots import plot_activation
from nnunetv2_cls.preprocess import ExpectedImages, preprocessed_images


@dataclass(frozen=True)
class Predictions:
    """Probabilities of the images of a folder, and the classes that follow from them."""

    classes: tuple[str, ...]
    """Class names by index."""
    threshold: float
    """Probability of class 1 from which a case is positive; not used for more than two classes."""
    probabilities: Mapping[str, Sequence[float]]
    """Probabilities of each case, by class index."""
    unreadable: Mapping[str, str]
    """Cases that could not be read, and why."""

    @property
    def predicted(self) -> dict[str, str]:
        """Predicted class name of each case."""
        if not self.probabilities:
            return {}
        indices = predict_classes(np.array(list(self.probabilities.values())), self.threshold)
        return {
            case: self.classes[index]
            for case, index in zip(self.probabilities, indices, strict=True)
        }


def predict(
    images: str | Path,
    output: str | Path,
    *,
    dataset: str | int,
    configuration: str,
    trainer: str = defaults.TRAINER,
    plans: str = defaults.PLANS,
    folds: Sequence[int | str] = defaults.FOLDS,
    checkpoint: str = defaults.CHECKPOINT,
    device: str | torch.device | None = None,
    mirror: bool = True,
    cam: bool = False,
) -> Predictions:
    """Classify raw images with trained folds, as ``nnUNetv2_predict_cls`` does.

    Writes ``predictions.csv`` and ``predictions.json``.

    Parameters
    ----------
    images
        Folder of raw images, named as in ``imagesTs``. For a model of PNG images they may have any
        name, and any format that ``convert`` reads.
    output
        Folder of the predictions; created if missing.
    dataset
        Id or name of the dataset that the folds were trained on.
    configuration
        Configuration of the folds, such as ``2d_cls``.
    trainer
        Trainer of the folds.
    plans
        Name of the plans.
    folds
        Folds whose probabilities are averaged.
    checkpoint
        File name of the checkpoint in each fold's folder.
    device
        ``cuda``, ``cpu`` or ``mps``; ``None`` for CUDA where there is a device of it, else the CPU.
    mirror
        Average over mirror images, if the folds were trained with mirroring.
    cam
        Also write class-activation maps, ``cam/CASE.png``. They need captum.

    Returns
    -------
    Predictions
        Probabilities and class of each case, and the cases that could not be read.

    Raises
    ------
    ClsError
        If a fold was not trained, the folder has no case, or images that the model does not take.

    Examples
    --------
    >>> from nnunetv2_cls import predict
    >>> found = predict("new_images", "out", dataset=501, configuration="2d_cls")  # doctest: +SKIP
    >>> found.predicted  # doctest: +SKIP
    {'patient_7': 'pneumonia'}
    """
    if cam:
        check_captum()
    if not nnUNet_results.is_set():
        raise ClsError("nnUNet_results is not set: export nnUNet_results=/path/to/folder.")
    model_name = f"{trainer}__{plans}__{configuration}"
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    classifier = load_classifier(
        Path(nnUNet_results.require()) / find_name(str(dataset)) / model_name,
        configuration,
        folds,
        checkpoint,
        torch.device(default_device if device is None else device),
    )
    return predict_folder(classifier, Path(images), Path(output), mirror=mirror, cam=cam)


def predict_folder(
    classifier: Classifier, images: Path, output: Path, *, mirror: bool = True, cam: bool = False
) -> Predictions:
    """Classify every case of a folder; write ``predictions.csv`` and ``predictions.json``.

    Parameters
    ----------
    classifier
        Trained folds.
    images, output, mirror, cam
        As for :func:`predict`.

    Raises
    ------
    ClsError
        If the folder has no case, or images that the classifier does not take.
    """
    plans, configuration = classifier.plans, classifier.configuration
    dataset_json = classifier.dataset_json
    expected = ExpectedImages.of(plans, configuration, dataset_json)
    inputs = find_inputs(images, dataset_json["file_ending"], expected)
    unreadable = dict(inputs.unreadable)

    def note(case: str, error: Exception) -> None:
        unreadable[case] = f"{type(error).__name__}: {error}"

    readable = preprocessed_images(
        inputs.files, plans, configuration, dataset_json, note, converted=inputs.converted
    )
    probabilities: dict[str, list[float]] = {}
    for batch in classifier.classify_batches(readable, mirror=mirror):
        probabilities.update(zip(batch.cases, batch.probabilities.tolist(), strict=True))
        if cam:
            _save_cams(classifier, batch, output / "cam")
    predictions = Predictions(classifier.classes, classifier.threshold, probabilities, unreadable)
    write_predictions(predictions, output)
    return predictions


def _save_cams(classifier: Classifier, batch: ClassifiedBatch, folder: Path) -> None:
    """Write, for each case, the mean map of the folds for the predicted class."""
    targets = predict_classes(batch.probabilities, classifier.threshold).tolist()
    for index, (case, target) in enumerate(zip(batch.cases, targets, strict=True)):
        image = batch.images[index : index + 1]
        maps = [activation_map(fold.network, image, target) for fold in classifier.folds]
        title = f"{classifier.classes[target]} {batch.probabilities[index, target]:.2f}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{case}.png"
        plot_activation(image[0].cpu().numpy(), np.mean(maps, axis=0), title, path)


def write_predictions(predictions: Predictions, folder: Path) -> None:
    """Write ``predictions.csv``, and the same as ``predictions.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    classes, predicted = predictions.classes, predictions.predicted
    with (folder / "predictions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["case", "class", *(f"probability_{name}" for name in classes)])
        for case, probabilities in predictions.probabilities.items():
            table.writerow([case, predicted[case], *(f"{p:.6f}" for p in probabilities)])
    content = {
        "classes": list(classes),
        "threshold": predictions.threshold if len(classes) == 2 else None,
        "cases": {
            case: {"class": predicted[case], "probabilities": list(probabilities)}
            for case, probabilities in predictions.probabilities.items()
        },
    }
    (folder / "predictions.json").write_text(json.dumps(content, indent=2))
