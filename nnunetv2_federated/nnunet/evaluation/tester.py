"""Test a trained model on raw cases, with nnU-Net's own predictor and evaluator.

A trainer whose models predict something else has its own :class:`Tester` in its attribute
``tester``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.nnunet.data.dataset import (
    Dataset,
    check_environment,
    compared_labels,
    read_json,
)
from nnunetv2_federated.nnunet.data.raw_files import case_files, training_files
from nnunetv2_federated.nnunet.environment import quiet
from nnunetv2_federated.nnunet.evaluation.case_metrics import metrics_of_case

Record = Mapping[str, Any]
"""What a tester notes of a case: ``case``, ``score``, ``shown`` and the other fields of
:class:`.TestedCase` that it knows, and whatever its own ``measure`` needs. A plain mapping: testers
of trainers from other packages do not import this one."""


@dataclass(frozen=True)
class ModelToTest:
    """Location of a trained fold, and the device to run it on."""

    folder: Path
    """``nnUNet_results/<Dataset>/<Trainer>__<Plans>__<configuration>``."""
    configuration: str
    fold: int | str
    device: torch.device
    also: tuple[int | str, ...] = ()
    """Further folds, whose predictions are averaged with those of ``fold`` as nnU-Net averages."""


class Tester(Protocol):
    """How models of a trainer are tested."""

    def references(
        self, raw: Path, dataset_json: Mapping[str, Any], subset: str, cases: Collection[str]
    ) -> dict[str, Any]:
        """Return the reference of each case.

        Parameters
        ----------
        raw
            Folder of the raw dataset.
        dataset_json
            ``dataset.json`` with the labels or classes of the model.
        subset
            ``Tr`` or ``Ts``.
        cases
            Cases of the subset.

        Raises
        ------
        ValueError
            If a case has no reference.
        """
        ...

    def test(
        self,
        model: ModelToTest,
        images: Mapping[str, list[str]],
        references: Mapping[str, Any],
        output: Path,
        validation_cases: Collection[str],
    ) -> Sequence[Record]:
        """Predict cases and compare each with its reference.

        Parameters
        ----------
        model
            Trained fold.
        images
            Image files of each case, by channel.
        references
            Reference of each case, of :meth:`references`.
        output
            Folder for predictions.
        validation_cases
            Validation cases of the fold, which may be used to tune a threshold.
        """
        ...

    def measure(self, records: Sequence[Record], names: Collection[str] | None) -> dict[str, float]:
        """Return metrics of a group of cases, the headline first; only ``names`` if given."""
        ...


class SegmentationTester:
    """Tests segmentations: Dice by nnU-Net's evaluator; NSD and HD95 where MONAI is installed."""

    def references(
        self, raw: Path, dataset_json: Mapping[str, Any], subset: str, cases: Collection[str]
    ) -> dict[str, str]:
        """Return the file with the reference segmentation of each case."""
        if subset == "Tr":
            known = training_files(raw, dataset_json)
            files = {case: known[case].label for case in cases}
        else:
            ending = dataset_json["file_ending"]
            files = {case: str(raw / f"labels{subset}" / (case + ending)) for case in cases}
        missing = [case for case, path in files.items() if not Path(path).is_file()]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(files)} test cases have no reference: "
                f"{files[missing[0]]} does not exist"
            )
        return files

    def test(
        self,
        model: ModelToTest,
        images: Mapping[str, list[str]],
        references: Mapping[str, Any],
        output: Path,
        validation_cases: Collection[str],
    ) -> list[Record]:
        """Segment case by case into ``output`` and compare each with its reference."""
        del validation_cases  # nothing to tune
        output.mkdir(parents=True, exist_ok=True)
        with quiet():
            predictor = nnUNetPredictor(
                perform_everything_on_device=model.device.type == "cuda",
                device=model.device,
                verbose=False,
                verbose_preprocessing=False,
                allow_tqdm=False,
            )
            predictor.initialize_from_trained_model_folder(
                str(model.folder), (model.fold, *model.also)
            )
            predictor.predict_from_files_sequential(
                [list(images[case]) for case in images], [str(output / case) for case in images]
            )
        return [_record(predictor, case, references[case], output) for case in images]

    def measure(self, records: Sequence[Record], names: Collection[str] | None) -> dict[str, float]:
        """Return the mean over cases of each metric, as nnU-Net takes it.

        ``Dice`` is the mean over the classes' means.
        """
        known = list(records[0]["metrics"]) if records else []
        chosen = {"Dice", *known} if names is None else set(names)
        means = {
            name: _mean([record["metrics"][name] for record in records])
            for name in known
            if _is_needed(name, chosen)
        }
        means = {"Dice": _mean_dice(means), **means}
        return {name: mean for name, mean in means.items() if name in chosen}


def _record(predictor: Any, case: str, reference: str, output: Path) -> Record:  # noqa: ANN401  # nnU-Net's predictor
    """Compare a predicted segmentation with its reference."""
    prediction = output / (case + predictor.dataset_json["file_ending"])
    metrics = _metrics_of_labels(predictor, reference, str(prediction))
    score = _mean_dice(metrics)
    return {
        "case": case,
        "metrics": metrics,
        "score": _number(score),
        "shown": "Dice -" if math.isnan(score) else f"Dice {score:.3f}",
        "prediction": prediction.name,
    }


def _metrics_of_labels(predictor: Any, reference: str, prediction: str) -> dict[str, float | None]:  # noqa: ANN401  # nnU-Net's predictor
    """Return Dice, and surface distances where MONAI is installed, of each label or region."""
    plans, dataset_json = predictor.plans_manager, predictor.dataset_json
    manager = plans.get_label_manager(dataset_json)
    io, ignored = plans.image_reader_writer_class(), manager.ignore_label
    labels = compared_labels(manager)
    of_labels = metrics_of_case(reference, prediction, io, labels, ignored)
    names = {tuple(v) if isinstance(v, list) else v: k for k, v in dataset_json["labels"].items()}
    metrics: dict[str, float | None] = {}
    for label in labels:
        name = names.get(label, str(label))
        found = {metric: _number(value) for metric, value in of_labels[label].items()}
        metrics |= {f"{m} {name}": value for m, value in found.items() if m != "IoU"}
    return metrics


def _is_needed(name: str, chosen: Collection[str]) -> bool:
    """Whether a metric is chosen, or the chosen mean over classes is taken from it."""
    return name in chosen or ("Dice" in chosen and _is_dice(name))


def _is_dice(name: str) -> bool:
    return name.startswith("Dice ")


def _mean_dice(metrics: Mapping[str, float | None]) -> float:
    """Return the mean over labels; NaN if no label has a Dice."""
    return _mean([value for name, value in metrics.items() if _is_dice(name)])


def _number(value: float) -> float | None:
    """Return ``None`` for NaN and infinity, which are not JSON."""
    return float(value) if math.isfinite(value) else None


def _mean(values: Sequence[float | None]) -> float:
    known = [v for v in values if v is not None and not math.isnan(v)]
    return float(np.mean(known)) if known else float("nan")


def tester_of(trainer: type) -> Tester:
    """Return the trainer's own tester, or the one for segmentation."""
    tester: Tester = getattr(trainer, "tester", None) or SegmentationTester()
    return tester


def validates_segmentations(trainer: type) -> bool:
    """Whether models of a trainer are compared with reference segmentations."""
    return isinstance(tester_of(trainer), SegmentationTester)


def raw_folder(dataset: Dataset) -> Path:
    """Return the folder of the raw dataset, whose images are predicted.

    Raises
    ------
    SettingsError
        If ``nnUNet_raw`` does not have the dataset.
    """
    check_environment(nnUNet_raw)
    folder = Path(nnUNet_raw.require()) / dataset.name
    if not (folder / "dataset.json").is_file():
        raise SettingsError(
            f"{folder} does not hold the raw dataset: testing predicts raw images; point "
            "nnUNet_raw at the folder that has it."
        )
    return folder


def images_tr(raw: Path) -> dict[str, list[str]]:
    """Return the image files of every case of ``imagesTr``."""
    return {case: files.images for case, files in training_files(raw).items()}


def images_ts(raw: Path) -> dict[str, list[str]]:
    """Return the image files of every case of ``imagesTs``.

    Raises
    ------
    SettingsError
        If ``imagesTs`` has no images.
    """
    folder = raw / "imagesTs"
    ending = str(read_json(raw / "dataset.json")["file_ending"])
    cases = case_files(folder, ending) if folder.is_dir() else {}
    if not cases:
        raise SettingsError(
            f"--test-set: {folder} has no images; leave the flag out to test on cases of imagesTr."
        )
    return cases


def read_slice(
    plans: Mapping[str, Any], images: Sequence[str], segmentations: Sequence[str]
) -> tuple[np.ndarray[Any, Any], list[np.ndarray[Any, Any]]]:
    """Read one plane of the first channel and of the segmentations of a case.

    The plane is the one with most foreground in the first segmentation; without foreground, the
    middle one.

    Returns
    -------
    tuple
        Image and segmentations, each of shape (y, x).
    """
    io = PlansManager(dict(plans)).image_reader_writer_class()
    image = io.read_images(list(images))[0][0]
    volumes = [io.read_seg(path)[0][0] for path in segmentations]
    plane = image.shape[0] // 2
    if volumes and (volumes[0] > 0).any():
        plane = int((volumes[0] > 0).reshape(len(image), -1).sum(1).argmax())
    return image[plane], [volume[plane] for volume in volumes]
