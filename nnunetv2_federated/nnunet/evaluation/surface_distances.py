"""Surface distances by MONAI, where it is installed (``pip install ".[surface]"``)."""

from __future__ import annotations

import math
import warnings
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from nnunetv2.evaluation.evaluate_predictions import region_or_label_to_mask
from numpy.typing import NDArray

NSD_TOLERANCE = 2.0
"""Tolerance of the surface Dice in the unit of the spacing: mm, or pixels of a photograph."""

Mask = NDArray[np.bool_]
"""Shape (1, z, y, x); of one slice for an image of two axes."""


def surface_metrics(
    reference: str,
    prediction: str,
    reader: Any,  # noqa: ANN401  # nnU-Net's reader/writer
    label: int | tuple[int, ...],
    ignore_label: int | None,
) -> dict[str, float]:
    """Compute the normalised surface Dice and the 95th percentile of the Hausdorff distance.

    Nikolov et al. 2018, arXiv:1809.04430. Where one of the masks is empty NSD is 0 and HD95 NaN,
    which a mean leaves out; where both are, both values are NaN.

    Parameters
    ----------
    reference, prediction
        Paths of the two label maps.
    reader
        nnU-Net's reader/writer for both files.
    label
        Label or region (a tuple of labels) that is compared.
    ignore_label
        Label of voxels in the reference that do not count; ``None`` if there is none.

    Returns
    -------
    dict
        ``NSD``, and ``HD95`` in the unit of the spacing; empty without MONAI.
    """
    if find_spec("monai") is None:
        return {}
    truth, properties = reader.read_seg(reference)
    predicted, _ = reader.read_seg(prediction)
    masks = [region_or_label_to_mask(labels, label) for labels in (truth, predicted)]
    if ignore_label is not None:
        masks = [mask & (truth != ignore_label) for mask in masks]
    empty = [not mask.any() for mask in masks]
    if any(empty):  # no surface to measure a distance from
        return {"NSD": math.nan if all(empty) else 0.0, "HD95": math.nan}
    return _distances(masks[0], masks[1], [float(x) for x in properties["spacing"]])


def _distances(truth: Mask, predicted: Mask, spacing: list[float]) -> dict[str, float]:
    from monai.metrics import (  # noqa: PLC0415  # optional
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    if truth.shape[1] == 1:  # an image of two axes
        truth, predicted, spacing = truth[:, 0], predicted[:, 0], spacing[1:]
    # MONAI expects (batch, class, ...)
    expected, actual = (
        torch.from_numpy(np.ascontiguousarray(mask[None])) for mask in (truth, predicted)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nsd = compute_surface_dice(actual, expected, [NSD_TOLERANCE], True, spacing=spacing)
        hd95 = compute_hausdorff_distance(actual, expected, True, percentile=95, spacing=spacing)
    return {"NSD": float(nsd), "HD95": float(hd95)}
