"""Validate a trained classifier on every case, with mirroring, and write ``summary.json``."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_cls.checks import labelled_tests
from nnunetv2_cls.inference import Classifier
from nnunetv2_cls.labels import ImageLabels
from nnunetv2_cls.metrics import choose_threshold, evaluate
from nnunetv2_cls.plots import plot_classification
from nnunetv2_cls.preprocess import preprocessed_images
from nnunetv2_cls.splits import group_numbers, patients_of

_HEADLINE = ("AUROC", "accuracy", "balanced_accuracy", "F1")


def validate(
    classifier: Classifier,
    dataset: Any,  # noqa: ANN401  # nnU-Net's dataset class
    labels: ImageLabels,
    folder: Path,
) -> dict[str, Any]:
    """Validate a classifier on preprocessed cases, and test it on the test cases, if there are any.

    Writes ``validation/summary.json`` and, where ``nnUNet_raw`` has ``imagesTs`` and
    ``labelsTs.json``, ``test/summary.json``, with plots beside them. The threshold of both is
    chosen on the validation cases.

    Parameters
    ----------
    classifier
        Trained classifier.
    dataset
        nnU-Net's dataset of the validation cases.
    labels
        Class of each validation case.
    folder
        Folder of the trained fold.

    Returns
    -------
    dict
        Summary of the validation.
    """
    cases = list(dataset.identifiers)
    patients = patients_of(classifier.plans.dataset_name)
    summary = write_summary(
        folder / "validation",
        {case: labels.of_case[case] for case in cases},
        classifier.classify_images((case, dataset.load_case(case)[0][:]) for case in cases),
        classifier.classes,
        patients=patients,
    )
    test_labels, files = labelled_tests(
        classifier.plans.plans,
        classifier.configuration_name,
        classifier.dataset_json,
        classifier.classes,
    )
    if test_labels:
        test_images = preprocessed_images(
            files, classifier.plans, classifier.configuration, classifier.dataset_json
        )
        write_summary(
            folder / "test",
            test_labels,
            classifier.classify_images(test_images),
            classifier.classes,
            summary["threshold"],
            patients=patients,
        )
    return summary


def write_summary(
    folder: Path,
    targets: dict[str, int],
    probabilities: dict[str, list[float]],
    classes: Sequence[str],
    threshold: float | None = None,
    *,
    patients: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Compare predictions with the true classes; write ``summary.json`` and the plots.

    Parameters
    ----------
    folder
        Folder of the files; created if missing.
    targets
        True class index of each case.
    probabilities
        Predicted probabilities of each case, by class index.
    classes
        Class names by index.
    threshold
        Probability of class 1 from which a case is positive; ``None`` to choose it on these cases.
    patients
        Patient of each case whose patient is known; intervals are then by patient.

    Returns
    -------
    dict
        Content of ``summary.json``.
    """
    groups = group_numbers(list(targets), patients or {})
    summary = summarise(targets, probabilities, classes, threshold, groups)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False))
    cases = list(targets)
    if cases:
        plot_classification(
            np.array([targets[case] for case in cases]),
            np.array([probabilities[case] for case in cases]),
            classes,
            summary["threshold"],
            folder,
        )
    return summary


def summarise(
    targets: dict[str, int],
    probabilities: dict[str, list[float]],
    classes: Sequence[str],
    threshold: float | None = None,
    patients: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Return the content of ``summary.json``, arranged as nnU-Net's: means, then every case.

    Parameters
    ----------
    targets, probabilities, classes, threshold
        As for :func:`write_summary`.
    patients
        Number of each case's patient, in the order of ``targets``; ``None`` if every case is a
        patient of its own.
    """
    cases = list(targets)
    true = np.array([targets[case] for case in cases], np.int64)
    predicted = np.array([probabilities[case] for case in cases]).reshape(-1, len(classes))
    if threshold is None:
        threshold = choose_threshold(true, predicted) if len(classes) == 2 else 0.5
    evaluation = evaluate(true, predicted, classes, threshold, patients=patients)
    rows = [
        {"case": case, "class": targets[case], "probabilities": probabilities[case]}
        for case in cases
    ]
    for row, patient in zip(rows, patients or (), strict=bool(patients)):
        row["patient"] = patient
    return {
        "foreground_mean": {name: evaluation["metrics"][name] for name in _HEADLINE},
        "classes": list(classes),
        **evaluation,
        "metric_per_case": rows,
    }


def join_summaries(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """Join the summaries of several datasets: one threshold, and metrics over all cases."""
    rows = [
        (f"{number}/{row['case']}", row, (number, row.get("patient", row["case"])))
        for number, summary in enumerate(summaries)
        for row in summary["metric_per_case"]
    ]
    by_patient = any("patient" in row for _, row, _ in rows)
    numbers: dict[Hashable, int] = {}
    return summarise(
        {name: row["class"] for name, row, _ in rows},
        {name: row["probabilities"] for name, row, _ in rows},
        summaries[0]["classes"],
        patients=[numbers.setdefault(p, len(numbers)) for *_, p in rows] if by_patient else None,
    )
