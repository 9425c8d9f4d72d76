"""How a federation's comparison tests classifiers; offered by the trainer as ``tester``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json

from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.inference import Model, classify, load_model
from nnunetv2_cls.labels import check_same_classes, raw_labels, read_classes
from nnunetv2_cls.loader import batches
from nnunetv2_cls.metrics import auroc, choose_threshold, predict_classes, score
from nnunetv2_cls.preprocess import preprocessed_images

_HEADLINE = ("AUROC", "accuracy")


class TrainedModel(Protocol):
    """Where a trained fold is."""

    folder: Path
    configuration: str
    fold: int | str
    device: torch.device


class ClsTester:
    """Probabilities of raw images, judged by AUROC, accuracy and the rest."""

    def references(
        self, raw: Path, dataset_json: Mapping[str, Any], subset: str, cases: Collection[str]
    ) -> dict[str, int]:
        """Return the class index of each case.

        Raises
        ------
        ClsError
            If a case has no label, or the raw dataset has other classes.
        """
        path = raw / f"labels{subset}.json"
        if not path.is_file():
            raise ClsError(f"{path} does not exist: it holds the class of each test case")
        labels = raw_labels(raw, path.name)
        check_same_classes(raw.name, labels.classes, read_classes(dataset_json))
        known = labels.of_case
        missing = [case for case in cases if case not in known]
        if missing:
            raise ClsError(f"{path} has no label for {missing[0]}; {len(missing)} are without")
        return {case: known[case] for case in cases}

    def test(
        self,
        model: TrainedModel,
        images: Mapping[str, list[str]],
        references: Mapping[str, int],
        output: Path,
        validation_cases: Collection[str],
    ) -> list[dict[str, Any]]:
        """Classify every case; the threshold is chosen on the validation cases given."""
        # not above: it imports the trainer, which names this class

        del output  # probabilities are in the records
        loaded = load_model(
            model.folder,
            model.configuration,
            [model.fold],
            "checkpoint_final.pth",
            model.device,
        )
        ((network, axes),) = loaded.folds
        preprocessed = preprocessed_images(
            images, loaded.plans, loaded.configuration, loaded.dataset_json
        )
        found: dict[str, list[float]] = {}
        for names, batch in batches(preprocessed, loaded.configuration):
            probabilities = classify(network, batch.to(model.device), axes)
            found.update(zip(names, probabilities.tolist(), strict=True))
        summary = model.folder / f"fold_{model.fold}" / "validation" / "summary.json"
        threshold = _threshold(load_json(str(summary)), validation_cases)
        return [_record(case, references[case], found[case], threshold, loaded) for case in images]

    def measure(
        self, records: Sequence[Mapping[str, Any]], names: Collection[str] | None
    ) -> dict[str, float]:
        """Return AUROC, accuracy and the rest of a group of cases; only ``names`` if given."""
        if not records:
            return {name: float("nan") for name in names or _HEADLINE}
        targets = np.array([record["class"] for record in records])
        probabilities = np.array([record["probabilities"] for record in records])
        threshold = records[0]["threshold"]
        if names is not None and set(names) <= set(_HEADLINE):  # thousands of times in a bootstrap
            fast = {
                "AUROC": lambda: auroc(targets, probabilities),
                "accuracy": lambda: float(
                    np.mean(predict_classes(probabilities, threshold) == targets)
                ),
            }
            return {name: fast[name]() for name in _HEADLINE if name in names}
        found = score(targets, probabilities, threshold)
        order = [*_HEADLINE, *(name for name in found if name not in _HEADLINE)]
        return {name: found[name] for name in order if names is None or name in names}


def _threshold(summary: Mapping[str, Any], cases: Collection[str]) -> float:
    rows = [row for row in summary["metric_per_case"] if row["case"] in cases]
    if not rows or len(rows[0]["probabilities"]) != 2:
        return 0.5
    targets = np.array([row["class"] for row in rows])
    return choose_threshold(targets, np.array([row["probabilities"] for row in rows]))


def _record(
    case: str, target: int, probabilities: list[float], threshold: float, model: Model
) -> dict[str, Any]:
    predicted = int(predict_classes(np.array([probabilities]), threshold)[0])
    return {
        "case": case,
        "class": target,
        "stratum": target,
        "probabilities": probabilities,
        "threshold": threshold,
        "score": probabilities[target],
        "shown": f"{model.classes[predicted]} {probabilities[predicted]:.2f}",
        "truth": model.classes[target],
    }
