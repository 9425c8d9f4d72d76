"""Full validation of a classifier: every case, with mirroring, to ``validation/summary.json``."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunetv2_cls.checks import labelled_tests
from nnunetv2_cls.inference import classify
from nnunetv2_cls.loader import batches
from nnunetv2_cls.metrics import choose_threshold, evaluate
from nnunetv2_cls.plots import plot_classification
from nnunetv2_cls.preprocess import preprocessed_images
from nnunetv2_cls.splits import group_numbers, patients_of

if TYPE_CHECKING:
    from nnunetv2_cls.trainer import nnUNetTrainerCls

_HEADLINE = ("AUROC", "accuracy", "balanced_accuracy", "F1")


def classify_all(
    trainer: nnUNetTrainerCls, images: Iterable[tuple[str, np.ndarray[Any, Any]]]
) -> dict[str, list[float]]:
    """Classify preprocessed images, in batches of the trainer's size."""
    trainer.network.eval()
    axes = trainer.inference_allowed_mirroring_axes
    found: dict[str, list[float]] = {}
    for names, batch in batches(images, trainer.configuration_manager):
        probabilities = classify(trainer.network, batch.to(trainer.device), axes)
        found.update(zip(names, probabilities.tolist(), strict=True))
    return found


def validate(trainer: nnUNetTrainerCls, cases: Sequence[str]) -> dict[str, Any]:
    """Judge a trainer's network on validation cases, and on the dataset's test cases if any.

    Writes ``validation/summary.json`` and, where ``nnUNet_raw`` has ``imagesTs`` and
    ``labelsTs.json``, ``test/summary.json``, with plots beside them. The threshold is chosen on the
    validation cases.

    Returns
    -------
    dict
        The summary of the validation.
    """
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, list(cases))
    images = ((case, dataset.load_case(case)[0][:]) for case in cases)
    probabilities = classify_all(trainer, images)
    targets = {case: trainer.image_labels.of_case[case] for case in cases}
    folder = Path(trainer.output_folder)
    classes = trainer.image_labels.classes
    patients = patients_of(trainer.plans_manager.dataset_name)
    summary = write_summary(
        folder / "validation", targets, probabilities, classes, patients=patients
    )
    labels, files = labelled_tests(
        trainer.plans_manager.plans, trainer.configuration_name, trainer.dataset_json, classes
    )
    if labels:
        test_images = preprocessed_images(
            files, trainer.plans_manager, trainer.configuration_manager, trainer.dataset_json
        )
        write_summary(
            folder / "test",
            labels,
            classify_all(trainer, test_images),
            classes,
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
    """Judge predictions and write ``summary.json`` and the plots.

    Parameters
    ----------
    folder
        Made if need be.
    targets, probabilities
        By case.
    classes
        Names, by index.
    threshold
        ``None`` to choose it on these cases.
    patients
        Patient of a case, where known: intervals resample patients.
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
    """Return the summary, in the style of nnU-Net's: means, then every case.

    ``patients`` are numbers, in the order of the cases.
    """
    cases = list(targets)
    true = np.array([targets[case] for case in cases], np.int64)
    predicted = np.array([probabilities[case] for case in cases]).reshape(-1, len(classes))
    if threshold is None:
        threshold = choose_threshold(true, predicted) if len(classes) == 2 else 0.5
    judged = evaluate(true, predicted, classes, threshold, patients=patients)
    rows = [
        {"case": case, "class": targets[case], "probabilities": probabilities[case]}
        for case in cases
    ]
    for row, patient in zip(rows, patients or (), strict=bool(patients)):
        row["patient"] = patient
    return {
        "foreground_mean": {name: judged["metrics"][name] for name in _HEADLINE},
        "classes": list(classes),
        **judged,
        "metric_per_case": rows,
    }


def join_summaries(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """Join the summaries of several datasets: one threshold, metrics over all cases."""
    rows = [
        (f"{number}/{row['case']}", row, (number, row.get("patient", row["case"])))
        for number, summary in enumerate(summaries)
        for row in summary["metric_per_case"]
    ]
    known = any("patient" in row for _, row, _ in rows)
    numbers: dict[Hashable, int] = {}
    return summarise(
        {name: row["class"] for name, row, _ in rows},
        {name: row["probabilities"] for name, row, _ in rows},
        summaries[0]["classes"],
        patients=[numbers.setdefault(p, len(numbers)) for *_, p in rows] if known else None,
    )
