"""Metrics of one segmented case: nnU-Net's own, and surface distances where MONAI is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2.evaluation.evaluate_predictions import compute_metrics

from nnunetv2_federated.nnunet.evaluation.surface_distances import surface_metrics

Label = int | tuple[int, ...]
"""A label, or the labels of a region."""


def metrics_of_case(
    reference: str,
    prediction: str,
    reader: Any,  # noqa: ANN401  # nnU-Net's reader/writer
    labels: Sequence[Label],
    ignore_label: int | None,
    *,
    surface: bool = True,
) -> Mapping[Label, dict[str, float]]:
    """Compare a segmentation with its reference.

    Parameters
    ----------
    reference, prediction
        Paths of the two label maps.
    reader
        nnU-Net's reader/writer for both files.
    labels
        Labels or regions that are compared.
    ignore_label
        Label of voxels in the reference that do not count; ``None`` if there is none.
    surface
        Whether surface distances are computed, too.

    Returns
    -------
    dict
        ``Dice`` and ``IoU`` of each label, ``NSD`` and ``HD95`` where MONAI is installed; NaN where
        one is not defined.
    """
    compared = compute_metrics(reference, prediction, reader, labels, ignore_label)["metrics"]
    return {
        label: {
            "Dice": float(compared[label]["Dice"]),
            "IoU": float(compared[label]["IoU"]),
            **(
                surface_metrics(reference, prediction, reader, label, ignore_label)
                if surface
                else {}
            ),
        }
        for label in labels
    }
