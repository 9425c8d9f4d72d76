"""Surface distances by MONAI, where it is installed (``pip install ".[surface]"``)."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from nnunetv2.evaluation.evaluate_predictions import region_or_label_to_mask

NSD_TOLERANCE = 2.0
"""In the unit of the spacing: mm, or pixels of a photograph."""


def surface_metrics(
    reference: str,
    prediction: str,
    reader: Any,  # noqa: ANN401  # nnU-Net's reader/writer
    label: int | tuple[int, ...],
    ignore_label: int | None,
) -> dict[str, float]:
    """Compute the normalised surface Dice and the 95th percentile of the Hausdorff distance.

    Nikolov et al. 2018, arXiv:1809.04430. Empty without MONAI. Where one mask is empty NSD is 0
    and HD95 NaN, which a mean leaves out.

    Parameters
    ----------
    reference, prediction
        Files.
    reader
        Of both.
    label
        A label or a region.
    ignore_label
        Voxels of the reference that do not count.
    """
    if find_spec("monai") is None:
        return {}
    from monai.metrics import (  # noqa: PLC0415  # optional
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    truth, properties = reader.read_seg(reference)
    predicted, _ = reader.read_seg(prediction)
    masks = [region_or_label_to_mask(seg, label) for seg in (truth, predicted)]
    if ignore_label is not None:
        masks = [mask & (truth != ignore_label) for mask in masks]
    present = sum(bool(mask.any()) for mask in masks)
    if present < 2:  # one of them empty: nothing agrees, and there is no distance
        return {"NSD": 0.0 if present else float("nan"), "HD95": float("nan")}
    flat = truth.shape[1] == 1
    spacing = [float(x) for x in properties["spacing"]][1 if flat else 0 :]
    # (batch, class, ...); a 2D image has one plane
    true, ours = (
        torch.from_numpy(np.ascontiguousarray(mask[None, :, 0] if flat else mask[None]))
        for mask in masks
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nsd = compute_surface_dice(ours, true, [NSD_TOLERANCE], True, spacing=spacing)
        hd95 = compute_hausdorff_distance(ours, true, True, percentile=95, spacing=spacing)
    return {"NSD": float(nsd), "HD95": float(hd95)}
