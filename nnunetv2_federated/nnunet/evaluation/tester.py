"""Test a trained model on raw cases, with nnU-Net's own predictor and evaluator.

A trainer whose models predict something else offers its own :class:`Tester` as its attribute
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
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.nnunet.data.dataset import Dataset, check_environment, read_json
from nnunetv2_federated.nnunet.data.raw_files import case_files, training_files
from nnunetv2_federated.nnunet.environment import quiet
from nnunetv2_federated.nnunet.evaluation.surface_distances import surface_metrics

Record = dict[str, Any]
"""One tested case: ``case``, ``score`` (higher is better), ``shown``, and ``measure``'s own."""


@dataclass(frozen=True)
class TrainedModel:
    """Where a trained fold is."""

    folder: Path
    """``nnUNet_results/<Dataset>/<Trainer>__<Plans>__<configuration>``."""
    configuration: str
    fold: int | str
    device: torch.device


class Tester(Protocol):
    """How models of a trainer are tested."""

    def references(
        self, raw: Path, dataset_json: Mapping[str, Any], subset: str, cases: Collection[str]
    ) -> dict[str, Any]:
        """Return the truth of each case; ``ValueError`` if one is missing.

        ``raw`` is the raw dataset, ``subset`` is ``Tr`` or ``Ts``.
        """
        ...

    def test(
        self,
        model: TrainedModel,
        images: Mapping[str, list[str]],
        references: Mapping[str, Any],
        output: Path,
        validation_cases: Collection[str],
    ) -> list[Record]:
        """Predict all cases and judge each; ``validation_cases`` may be used to tune."""
        ...

    def measure(
        self, records: Sequence[Mapping[str, Any]], names: Collection[str] | None
    ) -> dict[str, float]:
        """Return metrics of a group of cases, the headline first; only ``names`` if given."""
        ...


class SegmentationTester:
    """Dice by nnU-Net's evaluator; NSD and HD95 where MONAI is installed."""

    def references(
        self, raw: Path, dataset_json: Mapping[str, Any], subset: str, cases: Collection[str]
    ) -> dict[str, str]:
        """Return the file with the reference segmentation of each case."""
        if subset == "Tr":
            known = training_files(raw, dataset_json)
            found = {case: str(known[case]["label"]) for case in cases}
        else:
            ending = dataset_json["file_ending"]
            found = {case: str(raw / f"labels{subset}" / (case + ending)) for case in cases}
        missing = [case for case, path in found.items() if not Path(path).is_file()]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(found)} test cases have no reference: "
                f"{found[missing[0]]} does not exist"
            )
        return found

    def test(
        self,
        model: TrainedModel,
        images: Mapping[str, list[str]],
        references: Mapping[str, Any],
        output: Path,
        validation_cases: Collection[str],
    ) -> list[Record]:
        """Predict case by case into ``output`` and judge each."""
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
            predictor.initialize_from_trained_model_folder(str(model.folder), (model.fold,))
            predictor.predict_from_files_sequential(
                [list(images[case]) for case in images], [str(output / case) for case in images]
            )
        return [self._judge(predictor, case, references[case], output) for case in images]

    def _judge(self, predictor: Any, case: str, reference: str, output: Path) -> Record:  # noqa: ANN401  # nnU-Net's predictor
        plans, dataset_json = predictor.plans_manager, predictor.dataset_json
        labels = plans.get_label_manager(dataset_json)
        io = plans.image_reader_writer_class()
        prediction = str(output / (case + dataset_json["file_ending"]))
        wanted = labels.foreground_regions if labels.has_regions else labels.foreground_labels
        judged = compute_metrics(reference, prediction, io, wanted, labels.ignore_label)["metrics"]
        names = {
            tuple(v) if isinstance(v, list) else v: k for k, v in dataset_json["labels"].items()
        }
        metrics = {}
        for label in wanted:
            name = names.get(label, str(label))
            metrics[f"Dice {name}"] = _number(judged[label]["Dice"])
            distances = surface_metrics(reference, prediction, io, label, labels.ignore_label)
            metrics |= {f"{metric} {name}": _number(v) for metric, v in distances.items()}
        dice = [v for name, v in metrics.items() if name.startswith("Dice ") and v is not None]
        score = float(np.mean(dice)) if dice else None
        return {
            "case": case,
            "metrics": metrics,
            "score": score,
            "shown": "Dice -" if score is None else f"Dice {score:.3f}",
            "prediction": Path(prediction).name,
        }

    def measure(
        self, records: Sequence[Mapping[str, Any]], names: Collection[str] | None
    ) -> dict[str, float]:
        """Mean over cases of each class, as nnU-Net takes it; ``Dice`` is the mean over classes."""
        metrics = {
            name: _mean([record["metrics"][name] for record in records])
            for name in (records[0]["metrics"] if records else ())
            if names is None or name in names or (name.startswith("Dice ") and "Dice" in names)
        }
        foreground = [value for name, value in metrics.items() if name.startswith("Dice ")]
        found = {"Dice": _mean(foreground), **metrics}
        return {name: v for name, v in found.items() if names is None or name in names}


def _number(value: float) -> float | None:
    """NaN and infinity are not JSON."""
    return float(value) if math.isfinite(value) else None


def _mean(values: Sequence[float | None]) -> float:
    known = [v for v in values if v is not None and not math.isnan(v)]
    return float(np.mean(known)) if known else float("nan")


def tester_of(trainer: type) -> Tester:
    """Return the trainer's own tester, or the one for segmentation."""
    tester: Tester = getattr(trainer, "tester", None) or SegmentationTester()
    return tester


def validates_segmentations(trainer: type) -> bool:
    """Whether models of a trainer are judged by reference segmentations."""
    return isinstance(tester_of(trainer), SegmentationTester)


def raw_folder(dataset: Dataset) -> Path:
    """Return the raw dataset, whose images are predicted.

    Raises
    ------
    SettingsError
        If ``nnUNet_raw`` does not have it.
    """
    check_environment(nnUNet_raw)
    folder = Path(nnUNet_raw.require()) / dataset.name
    if not (folder / "dataset.json").is_file():
        raise SettingsError(
            f"{folder} does not hold the raw dataset: testing predicts raw images; point "
            "nnUNet_raw at the folder that has it."
        )
    return folder


def training_images(raw: Path) -> dict[str, list[str]]:
    """Return the image files of every case of ``imagesTr``."""
    return {case: list(map(str, files["images"])) for case, files in training_files(raw).items()}


def test_images(raw: Path) -> dict[str, list[str]]:
    """Return the image files of every case of ``imagesTs``.

    Raises
    ------
    SettingsError
        If there are none.
    """
    folder = raw / "imagesTs"
    ending = str(read_json(raw / "dataset.json")["file_ending"])
    cases = case_files(folder, ending) if folder.is_dir() else {}
    if not cases:
        raise SettingsError(
            f"--test-set: {folder} has no images; leave the flag out to test on the validation "
            "cases of the fold."
        )
    return cases


def read_slice(
    plans: Mapping[str, Any], images: Sequence[str], segmentations: Sequence[str]
) -> tuple[np.ndarray[Any, Any], list[np.ndarray[Any, Any]]]:
    """Read the first channel and segmentations of a case in one plane.

    The plane is that with most foreground in the first segmentation, the middle without any.

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
