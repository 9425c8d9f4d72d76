"""Test classifiers for a comparison of federations, as the attribute ``tester`` of a trainer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunetv2_cls.defaults import CHECKPOINT
from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.inference import Classifier, Fold, load_classifier
from nnunetv2_cls.labels import check_same_classes, raw_labels, read_classes
from nnunetv2_cls.metrics import (
    METRICS,
    Classes,
    Probabilities,
    auroc,
    choose_threshold,
    predict_classes,
    score,
)
from nnunetv2_cls.preprocess import preprocessed_images


def _accuracy(targets: Classes, probabilities: Probabilities, threshold: float) -> float:
    return float(np.mean(predict_classes(probabilities, threshold) == targets))


_HEADLINE: Mapping[str, Callable[[Classes, Probabilities, float], float]] = {
    "AUROC": lambda targets, probabilities, _: auroc(targets, probabilities),
    "accuracy": _accuracy,
}
"""Metrics that a comparison shows first, and computes thousands of times in its bootstrap."""
_ORDER = (*_HEADLINE, *(name for name in METRICS if name not in _HEADLINE))


class TrainedFold(Protocol):
    """Location of a trained fold, and the device to run it on."""

    folder: Path
    configuration: str
    fold: int | str
    device: torch.device


class Networks(Protocol):
    """Networks of trained folds, and what was trained with them."""

    plans: PlansManager
    configuration: str
    dataset_json: dict[str, Any]
    networks: Sequence[nn.Module]
    mirroring_axes: Sequence[int]
    threshold: float


class ClsTester:
    """Test classifiers on raw images: probabilities, AUROC, accuracy and the other metrics."""

    def references(
        self, raw: Path, dataset_json: Mapping[str, Any], subset: str, cases: Collection[str]
    ) -> dict[str, int]:
        """Return the class index of each case.

        Parameters
        ----------
        raw
            Folder of the raw dataset.
        dataset_json
            Content of ``dataset.json`` with the classes of the classifier.
        subset
            ``Tr`` or ``Ts``.
        cases
            Case names.

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
        model: TrainedFold,
        images: Mapping[str, list[str]],
        references: Mapping[str, int],
        output: Path,
        validation_cases: Collection[str],
    ) -> list[dict[str, Any]]:
        """Classify raw images, and return a record of each case.

        Parameters
        ----------
        model
            Trained fold.
        images
            Files of each case, by channel.
        references
            Class index of each case.
        output
            Not used: the records hold the probabilities.
        validation_cases
            Cases of the fold's validation on which the threshold is chosen.

        Returns
        -------
        list
            For each case: ``case``, ``class`` and ``stratum`` (the index of its true class),
            ``probabilities``, ``threshold``, ``score`` (the probability of the true class),
            ``shown`` (the predicted class, in words) and ``truth`` (the name of the true class).
        """
        del output
        classifier = load_classifier(
            model.folder, model.configuration, [model.fold], CHECKPOINT, model.device
        )
        probabilities = classifier.classify_images(
            preprocessed_images(
                images, classifier.plans, classifier.configuration, classifier.dataset_json
            )
        )
        summary = model.folder / f"fold_{model.fold}" / "validation" / "summary.json"
        threshold = _threshold(load_json(str(summary)), validation_cases)
        return [
            _record(case, references[case], probabilities[case], threshold, classifier.classes)
            for case in images
        ]

    def test_networks(
        self, model: Networks, images: Mapping[str, list[str]], references: Mapping[str, int]
    ) -> list[dict[str, Any]]:
        """Classify raw images with networks that are in memory, and return a record of each case.

        Parameters
        ----------
        model
            Networks whose probabilities are averaged.
        images, references
            As for :meth:`test`.
        """
        classifier = Classifier(
            model.plans,
            model.configuration,
            model.dataset_json,
            tuple(Fold(network, tuple(model.mirroring_axes)) for network in model.networks),
            model.threshold,
        )
        probabilities = classifier.classify_images(
            preprocessed_images(
                images, classifier.plans, classifier.configuration, classifier.dataset_json
            )
        )
        return [
            _record(
                case, references[case], probabilities[case], model.threshold, classifier.classes
            )
            for case in images
        ]

    def measure(
        self, records: Sequence[Mapping[str, Any]], names: Collection[str] | None
    ) -> dict[str, float]:
        """Compute the metrics of a group of cases.

        Parameters
        ----------
        records
            Records of :meth:`test`.
        names
            Metrics to compute; ``None`` for all.
        """
        if not records:
            return dict.fromkeys(names or _HEADLINE, float("nan"))
        targets = np.array([record["class"] for record in records])
        probabilities = np.array([record["probabilities"] for record in records])
        threshold = records[0]["threshold"]
        chosen = set(_ORDER if names is None else names)
        if chosen <= _HEADLINE.keys():
            values = {name: _HEADLINE[name](targets, probabilities, threshold) for name in chosen}
        else:
            values = score(targets, probabilities, threshold)
        return {name: values[name] for name in _ORDER if name in chosen}


def _threshold(summary: Mapping[str, Any], cases: Collection[str]) -> float:
    """Choose the threshold on these of a validation's cases."""
    rows = [row for row in summary["metric_per_case"] if row["case"] in cases]
    if not rows or len(rows[0]["probabilities"]) != 2:
        return 0.5
    targets = np.array([row["class"] for row in rows])
    return choose_threshold(targets, np.array([row["probabilities"] for row in rows]))


def _record(
    case: str, target: int, probabilities: list[float], threshold: float, classes: Sequence[str]
) -> dict[str, Any]:
    predicted = int(predict_classes(np.array([probabilities]), threshold)[0])
    return {
        "case": case,
        "class": target,
        "stratum": target,
        "probabilities": probabilities,
        "threshold": threshold,
        "score": probabilities[target],
        "shown": f"{classes[predicted]} {probabilities[predicted]:.2f}",
        "truth": classes[target],
    }
