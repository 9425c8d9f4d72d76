"""Convert the chest X-ray lung folder (images, masks, manifest.csv) to an nnU-Net dataset.

The folder holds 8-bit greyscale PNG images and human lung outlines of three centres;
``manifest.csv`` names for each case its ``image``, ``mask``, ``site``, ``patient``, ``finding`` and
``split``. Mask value 2 is nnU-Net's ignore label. The ``train`` and ``val`` cases become
``imagesTr``, the ``test`` cases ``imagesTs``. Beside ``dataset.json`` it writes

``cases.csv``
    case, site, patient, finding and split, for ``nnUNetv2_train_federated --case-table``;
``splits_final.json``
    one fold (0) with the manifest's own training and validation cases.
"""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from raw_dataset import (
    DatasetError,
    Slice,
    fail,
    new_dataset_folder,
    write_case,
    write_case_table,
    write_dataset_json,
)

NAME = "CXRLung"
LABELS = {"background": 0, "lung": 1, "ignore": 2}
SPLITS = ("train", "val", "test")
COLUMNS = ("case", "image", "mask", "site", "patient", "finding", "split")


@dataclass(frozen=True)
class Case:
    """One row of the manifest: the columns used here, under their own names."""

    case: str
    image: str
    mask: str
    site: str
    patient: str
    finding: str
    split: str

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise DatasetError(
                f"case {self.case}: split is {self.split!r}, allowed are {', '.join(SPLITS)}"
            )


def read_manifest(folder: Path) -> list[Case]:
    """Read ``manifest.csv``; raises DatasetError if it is absent or lacks a column."""
    path = folder / "manifest.csv"
    if not path.is_file():
        raise DatasetError(f"{path} is not there: give the folder that holds manifest.csv")
    with path.open(newline="", encoding="utf-8-sig") as table:
        reader = csv.DictReader(table)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise DatasetError(f"{path} lacks the columns {', '.join(missing)}")
        return [Case(**{name: row[name] for name in COLUMNS}) for row in reader]


def select_sites(cases: Sequence[Case], sites: Sequence[str] | None) -> list[Case]:
    """Keep the cases of `sites` (all if None).

    Raises
    ------
    DatasetError
        If a site is unknown, has no training or no validation case (a federation needs both at
        every site), or a patient is in two splits.
    """
    known = sorted({case.site for case in cases})
    unknown = sorted(set(sites or ()) - set(known))
    if unknown:
        raise DatasetError(f"unknown sites {', '.join(unknown)}: allowed are {', '.join(known)}")
    kept = [case for case in cases if sites is None or case.site in sites]
    for site in sorted({case.site for case in kept}):
        for split in ("train", "val"):
            if not any(case.site == site and case.split == split for case in kept):
                raise DatasetError(
                    f"site {site} has no {split} case: leave it out with --sites, or move a "
                    "patient's cases to that split in manifest.csv"
                )
    split_of: dict[tuple[str, str], str] = {}
    for case in kept:
        if split_of.setdefault((case.site, case.patient), case.split) != case.split:
            raise DatasetError(f"patient {case.patient} of {case.site} is in two splits")
    return kept


def read_pixels(path: Path, size: int, resample: Image.Resampling) -> Slice:
    """Read an 8-bit greyscale PNG as (size, size)."""
    with Image.open(path) as image:
        if image.mode != "L":
            raise DatasetError(f"{path} has mode {image.mode}: 8-bit greyscale (L) is needed")
        return np.array(image.resize((size, size), resample), dtype=np.uint8)


def one_fold(cases: Sequence[Case]) -> list[dict[str, list[str]]]:
    """Give the manifest's training and validation cases in the form of ``splits_final.json``."""
    return [
        {
            split: sorted(case.case for case in cases if case.split == split)
            for split in ("train", "val")
        }
    ]


def convert(source: Path, dataset_id: int, size: int, sites: Sequence[str] | None = None) -> Path:
    """Write the dataset below ``$nnUNet_raw`` and return its folder.

    Images are reduced by averaging areas, masks by the nearest pixel; both become `size` x `size`.
    """
    cases = select_sites(read_manifest(source), sites)
    absent = [name for c in cases for name in (c.image, c.mask) if not (source / name).is_file()]
    if absent:
        raise DatasetError(f"{len(absent)} files are missing in {source}, first {absent[0]}")
    folder = new_dataset_folder(dataset_id, NAME)
    for case in cases:
        image = read_pixels(source / case.image, size, Image.Resampling.BOX)
        labels = read_pixels(source / case.mask, size, Image.Resampling.NEAREST)
        if labels.max() > max(LABELS.values()):
            raise DatasetError(f"{case.mask} holds value {labels.max()}: allowed are 0, 1 and 2")
        write_case(folder, "Ts" if case.split == "test" else "Tr", case.case, image, labels)
    shown = ("case", "site", "patient", "finding", "split")
    write_case_table(folder, [{name: getattr(case, name) for name in shown} for case in cases])
    splits = json.dumps(one_fold(cases), indent=4) + "\n"
    (folder / "splits_final.json").write_text(splits, encoding="utf-8")
    write_dataset_json(
        folder,
        channel="XR",
        labels=LABELS,
        about={
            "description": f"Chest X-rays with lung outlines, {size} x {size}",
            "licence": "See the columns licence and attribution of the source's manifest.csv",
        },
    )
    return folder


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Convert the chest X-ray lung folder to an nnU-Net dataset with sites.",
        epilog="After nnUNetv2_plan_and_preprocess and before training, copy the dataset's "
        "splits_final.json from nnUNet_raw to nnUNet_preprocessed/<Dataset>/: fold 0 is then the "
        "manifest's own split, otherwise nnU-Net draws random folds.",
    )
    parser.add_argument("folder", type=Path, help="folder with images/, masks/ and manifest.csv")
    parser.add_argument("dataset_id", type=int, help="nnU-Net dataset id, for example 601")
    parser.add_argument(
        "--size", type=int, choices=(256, 128, 64), default=256, help="pixels a side (256)"
    )
    parser.add_argument("--sites", nargs="+", metavar="SITE", help="only these centres (all)")
    args = parser.parse_args(argv)
    try:
        folder = convert(args.folder, args.dataset_id, args.size, args.sites)
    except DatasetError as error:
        return fail(error)
    print(f"{folder}: copy its splits_final.json to nnUNet_preprocessed/{folder.name}/ after")
    print("planning and preprocessing, so that fold 0 is the manifest's own split")
    return 0


if __name__ == "__main__":
    sys.exit(main())
