"""Write greyscale 2D cases as an nnU-Net raw dataset: what the converters here share."""

import csv
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

Slice: TypeAlias = npt.NDArray[np.uint8]
"""A 2D image or label map of shape (rows, columns)."""


class DatasetError(Exception):
    """The dataset cannot be written; the message says what came and how to mend it."""


def new_dataset_folder(dataset_id: int, name: str) -> Path:
    """Create ``$nnUNet_raw/Dataset<id>_<name>`` and return it.

    Raises
    ------
    DatasetError
        If ``nnUNet_raw`` is not set, the id is out of range or a dataset with this id exists.
    """
    raw = os.environ.get("nnUNet_raw")  # noqa: SIM112 (nnU-Net's own name)
    if not raw:
        raise DatasetError("nnUNet_raw is not set: export it, as for any other nnU-Net command")
    if not 1 <= dataset_id <= 999:
        raise DatasetError(f"dataset id {dataset_id} is not allowed: choose 1 to 999")
    taken = sorted(Path(raw).glob(f"Dataset{dataset_id:03d}_*"))
    if taken:
        raise DatasetError(f"{taken[0]} is there already: remove it or choose another dataset id")
    folder = Path(raw) / f"Dataset{dataset_id:03d}_{name}"
    folder.mkdir(parents=True)
    return folder


def write_case(folder: Path, subset: str, case: str, image: Slice, labels: Slice) -> None:
    """Write one case; `subset` is ``"Tr"`` for training or ``"Ts"`` for test."""
    for target, pixels in (
        (folder / f"images{subset}" / f"{case}_0000.png", image),
        (folder / f"labels{subset}" / f"{case}.png", labels),
    ):
        target.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(target)


def write_case_table(folder: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write ``cases.csv``: what ``nnUNetv2_train_federated --case-table`` reads."""
    with (folder / "cases.csv").open("w", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_dataset_json(
    folder: Path, *, channel: str, labels: Mapping[str, int], about: Mapping[str, str]
) -> None:
    """Write ``dataset.json``; call it last, so that its presence means a complete dataset."""
    content = {
        "channel_names": {"0": channel},
        "labels": dict(labels),
        "numTraining": len(list((folder / "labelsTr").glob("*.png"))),
        "file_ending": ".png",
        "name": folder.name,
        **about,
    }
    (folder / "dataset.json").write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def fail(error: Exception) -> int:
    """Say in one line what is wrong and return the exit status for bad input."""
    print(f"error: {error}", file=sys.stderr)
    return 2
