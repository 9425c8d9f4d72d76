"""Every kind of configuration: planned over three sites, trained, validated, predicted by stock."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_raw
from small_datasets import write_dataset

from nnunetv2_federated.cli.plan import main as plan

LARGE, SMALL = (20, 48, 48), (16, 24, 24)
PLAIN = {"background": 0, "one": 1, "two": 2, "ignore": 3}
REGIONS = {"background": 0, "both": [1, 2], "two": 2}
RESENC = "nnUNetResEncUNetMPlans"


def plan_sites(
    raw: Path,
    first: int,
    shape: tuple[int, ...],
    labels: dict[str, int | list[int]],
    *flags: str,
) -> tuple[str, ...]:
    """Write three sites of one case, and plan for them."""
    names = tuple(str(number) for number in range(first, first + 3))
    for name in names:
        ignore = labels.get("ignore")
        write_dataset(raw, f"Dataset{name}_Site", shape, cases=1, labels=labels, ignore=ignore)
    plan(["-d", *names, "-np", "1", "-npfp", "1", *flags])
    return names


@pytest.fixture(scope="module")
def sites(nnunet_folders: Path) -> dict[str, tuple[str, ...]]:
    """Plan once; for a GPU so small that even a tiny image has a 3d_lowres."""
    raw = nnunet_folders / "raw"
    return {
        "nnUNetPlans": plan_sites(raw, 931, LARGE, PLAIN, "-gpu_memory_target", "0.02"),
        RESENC: plan_sites(
            raw, 934, SMALL, REGIONS, "-pl", "nnUNetPlannerResEncM", "-c", "3d_fullres"
        ),
    }


def predict(fold: Path, images: Path, to: Path, before: Path | None = None) -> np.ndarray:
    """Predict one case as ``nnUNetv2_predict`` does, in this process."""
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(fold.parent), ("all",))
    image = str(images / "case_00_0000.nii.gz")
    to.mkdir()
    predictor.predict_from_files_sequential(
        [[image]],
        [str(to / "case_00")],
        folder_with_segs_from_prev_stage=str(before) if before else None,
    )
    return sitk.GetArrayFromImage(sitk.ReadImage(str(to / "case_00.nii.gz")))


@pytest.mark.slow(60)
@pytest.mark.xdist_group("configurations")  # they share what the fixture plans
@pytest.mark.parametrize(
    ("plans", "stages"),
    [
        ("nnUNetPlans", ["2d"]),
        ("nnUNetPlans", ["3d_fullres"]),
        ("nnUNetPlans", ["3d_lowres", "3d_cascade_fullres"]),
        (RESENC, ["3d_fullres"]),
    ],
    ids=["2d", "3d_fullres", "cascade", "3d_fullres of ResEnc, regions"],
)
def test_a_configuration_from_planning_to_prediction(
    plans: str,
    stages: list[str],
    sites: dict[str, tuple[str, ...]],
    train: Callable[..., Path],
) -> None:
    names = sites[plans]
    predicted: Path | None = None
    flags = ["-p", plans, "--rounds", "2"]
    if plans == "nnUNetPlans" and stages != [
        "2d"
    ]:  # an eighth of the time to validate its many small patches
        flags += ["-tr", "nnUNetTrainerNoMirroring"]
    for stage in stages:
        results = train("--site-datasets", *names, stage, "all", *flags).parents[2]

        (fold,) = results.glob(f"Dataset{names[0]}_Site/*__{stage}/fold_all")
        summary = json.loads((fold / "validation" / "summary.json").read_text())
        assert len(summary["metric_per_case"]) == 3
        assert sorted(summary["mean"]) == (["(1, 2)", "2"] if plans == RESENC else ["1", "2"])
        images = Path(nnUNet_raw.require()) / f"Dataset{names[2]}_Site" / "imagesTr"
        mask = predict(fold, images, results / f"predicted_{stage}", predicted)
        assert mask.shape == (SMALL if plans == RESENC else LARGE)
        assert set(np.unique(mask)) <= {0, 1, 2}
        predicted = results / f"predicted_{stage}"
