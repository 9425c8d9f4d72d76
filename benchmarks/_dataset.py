"""A synthetic 2D dataset of discs, planned and preprocessed by nnU-Net's own functions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from nnunetv2.experiment_planning.plan_and_preprocess_api import (
    extract_fingerprints,
    plan_experiments,
    preprocess,
)
from skimage.io import imsave

NAME = "Dataset950_Discs"
SIDE = 64


def make_dataset(raw: Path, cases: int) -> None:
    """Write, plan and preprocess; nnU-Net's folders are in the environment."""
    for folder in ("imagesTr", "labelsTr"):
        (raw / NAME / folder).mkdir(parents=True)
    rows, columns = np.indices((SIDE, SIDE))
    for index in range(cases):
        rng = np.random.default_rng(index)
        centre = rng.uniform(0.3, 0.7, 2) * SIDE
        inside = np.hypot(rows - centre[0], columns - centre[1]) < SIDE / 5
        image = (rng.normal(100, 10, (SIDE, SIDE)) + 60 * inside).clip(0, 255)
        case = raw / NAME / "imagesTr" / f"case_{index:03d}_0000.png"
        imsave(str(case), image.astype(np.uint8), check_contrast=False)
        label = raw / NAME / "labelsTr" / f"case_{index:03d}.png"
        imsave(str(label), inside.astype(np.uint8), check_contrast=False)
    content = {
        "channel_names": {"0": "image"},
        "labels": {"background": 0, "disc": 1},
        "numTraining": cases,
        "file_ending": ".png",
    }
    (raw / NAME / "dataset.json").write_text(json.dumps(content))
    extract_fingerprints([950], num_processes=1)
    preprocess([950], plan_experiments([950]), ["2d"], [1])
