"""Small datasets in nnU-Net's layout, drawn from random numbers, and their planning."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from nnunetv2_federated.nnunet.environment import environment

FOLDERS = ("raw", "preprocessed", "results")


def blob_case(seed: int, shape: tuple[int, ...], labels: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Make an image with one bright ball per label, and its segmentation."""
    rng = np.random.default_rng(seed)
    image = rng.normal(100, 10, shape)
    seg = np.zeros(shape, np.uint8)
    grid = np.indices(shape)
    for label in range(1, labels + 1):
        centre = rng.uniform(0.3, 0.7, len(shape)) * shape
        distance = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True))
        inside = distance < (min(shape) / (3 + label)) ** 2
        seg[inside] = label
        image[inside] += 40 * label
    return image.clip(0, 255), seg


def write_dataset(
    raw: Path,
    name: str,
    shape: tuple[int, ...],
    *,
    cases: int = 12,
    labels: Mapping[str, int | list[int]] | None = None,
    ignore: int | None = None,
    first: int = 0,
) -> None:
    """Write an nnU-Net raw dataset of balls: PNG in 2D, NIfTI in 3D; ``first`` is a seed."""
    import SimpleITK as sitk  # noqa: N813, PLC0415
    from skimage.io import imsave  # noqa: PLC0415

    ending = ".png" if len(shape) == 2 else ".nii.gz"
    for folder in ("imagesTr", "labelsTr"):
        (raw / name / folder).mkdir(parents=True)
    for index in range(cases):
        image, seg = blob_case(first + index, shape)
        if ignore is not None:
            seg[:2] = ignore
        files = {f"imagesTr/case_{index:02d}_0000": image, f"labelsTr/case_{index:02d}": seg}
        for file, array in files.items():
            path = str(raw / name / (file + ending))
            if ending == ".png":
                imsave(path, array.astype(np.uint8), check_contrast=False)
            else:
                dtype = np.uint8 if "labels" in file else np.float32
                sitk.WriteImage(sitk.GetImageFromArray(array.astype(dtype)), path)
    content = {
        "channel_names": {"0": "image"},
        "labels": labels or {"background": 0, "one": 1, "two": 2},
        "numTraining": cases,
        "file_ending": ending,
    }
    if labels and any(isinstance(v, list) for v in labels.values()):
        content["regions_class_order"] = [1, 2]
    (raw / name / "dataset.json").write_text(json.dumps(content))


def plan_and_preprocess(
    dataset_id: int, configurations: list[str], planner: str = "ExperimentPlanner"
) -> None:
    """Do what ``nnUNetv2_plan_and_preprocess`` does, in this process where it can."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (  # noqa: PLC0415
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )

    workers = os.environ.pop("nnUNet_n_proc_DA", None)  # planning refuses 0
    extract_fingerprints([dataset_id], num_processes=1)
    plans = plan_experiments([dataset_id], planner)
    preprocess([dataset_id], plans, configurations, [1] * len(configurations))
    if workers is not None:
        os.environ["nnUNet_n_proc_DA"] = workers  # noqa: SIM112


def nnunet_in(base: Path) -> AbstractContextManager[None]:
    """Let nnU-Net's three folders be here for a while."""
    for name in FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    return environment(**{f"nnUNet_{name}": str(base / name) for name in FOLDERS})


def make_stripes(folder: Path) -> None:
    """Write and plan a dataset for classification: bright rows or bright columns."""
    from skimage.io import imsave  # noqa: PLC0415

    from nnunetv2_cls.cli.plan import main  # noqa: PLC0415

    rng = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / name).mkdir(parents=True)
    for images, labels_file, prefix, cases in (
        ("imagesTr", "labelsTr.json", "case", 40),
        ("imagesTs", "labelsTs.json", "test", 10),
    ):
        labels = {f"{prefix}_{i:02d}": i % 2 for i in range(cases)}
        (folder / labels_file).write_text(json.dumps(labels))
        for case, label in labels.items():
            image = rng.normal(100, 15, (32, 36))
            for start in (6, 18):
                image[
                    (slice(None), slice(start, start + 5)) if label else slice(start, start + 5)
                ] += 80
            path = str(folder / images / f"{case}_0000.png")
            imsave(path, image.clip(0, 255).astype(np.uint8), check_contrast=False)
            if images == "imagesTr":
                mask = np.ones(image.shape, np.uint8)
                imsave(str(folder / "labelsTr" / f"{case}.png"), mask, check_contrast=False)
    content = {
        "channel_names": {"0": "image"},
        "labels": {"background": 0, "image": 1},
        "classes": {"rows": 0, "columns": 1},
        "numTraining": 40,
        "file_ending": ".png",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    plan_and_preprocess(905, ["2d"])
    main(["905", "--batch-size", "8"])
