"""Make a small real 2D nnU-Net dataset from the MNI152 brain template.

The T1-weighted template and its grey- and white-matter probability maps come inside the package
``nilearn``, so nothing is downloaded. Axial slices become 2D cases of 64 x 64 pixels of 3 mm; three
sites hold the lower, the middle and the upper third of the head, which makes them differ.

This is ONE TEMPLATE BRAIN, the average of 152 people, cut into slices: a demonstration that the
whole chain of commands works. Training and test slices are neighbours in the same brain, and the
labels come from the same template. The Dice it yields is no evidence of any kind about patients.
"""

import argparse
import sys
from importlib import resources
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
from raw_dataset import (
    DatasetError,
    Slice,
    fail,
    new_dataset_folder,
    write_case,
    write_case_table,
    write_dataset_json,
)

LABELS = {"background": 0, "grey_matter": 1, "white_matter": 2}
SITES = ("lower", "middle", "upper")
HEIGHTS = range(24, 151, 2)
"""Axial slices used: mm above the template's lowest; beyond, white matter is almost absent."""
TEST_EVERY = 9
CROP = (slice(2, 194), slice(21, 213))
"""(x, y) in voxels: a square of 192 mm around the brain."""
PIXEL = 3
"""Side of a pixel of the dataset, in voxels of the template."""


def load_template(name: str) -> npt.NDArray[np.uint8]:
    """Load ``"t1"``, ``"gm"`` or ``"wm"`` of nilearn's MNI152 template: (x, y, z), 0 to 255."""
    data = resources.files("nilearn") / "datasets" / "data"
    with resources.as_file(data / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz") as path:
        return np.asarray(nibabel.load(path).dataobj, dtype=np.uint8)


def axial_slice(volume: npt.NDArray[np.uint8], height: int) -> npt.NDArray[np.float64]:
    """Cut one slice, anterior up, averaged over ``PIXEL`` x ``PIXEL`` voxels: (rows, columns)."""
    upright = volume[(*CROP, height)].T[::-1].astype(np.float64)
    rows, columns = (side // PIXEL for side in upright.shape)
    averaged: npt.NDArray[np.float64] = upright.reshape(rows, PIXEL, columns, PIXEL).mean((1, 3))
    return averaged


def tissue_labels(grey: npt.NDArray[np.float64], white: npt.NDArray[np.float64]) -> Slice:
    """Give each pixel its most probable tissue; `grey` and `white` are probabilities x 255."""
    background = 255 - grey - white
    labels: Slice = np.stack([background, grey, white]).argmax(axis=0).astype(np.uint8)
    return labels


def prepare(dataset_id: int) -> Path:
    """Write the dataset below ``$nnUNet_raw`` and return its folder."""
    t1, grey, white = (load_template(name) for name in ("t1", "gm", "wm"))
    folder = new_dataset_folder(dataset_id, "MNI152Slices")
    rows = []
    for index, height in enumerate(HEIGHTS):
        site = SITES[index * len(SITES) // len(HEIGHTS)]
        case = f"mni_{height:03d}"
        test = index % TEST_EVERY == TEST_EVERY // 2
        image = np.rint(axial_slice(t1, height)).astype(np.uint8)
        labels = tissue_labels(axial_slice(grey, height), axial_slice(white, height))
        write_case(folder, "Ts" if test else "Tr", case, image, labels)
        if not test:
            # Every slice plays a patient of its own, so that any partition can be tried on them.
            rows.append({"case": case, "site": site, "patient": case})
    write_case_table(folder, rows)
    write_dataset_json(
        folder,
        channel="T1",
        labels=LABELS,
        about={
            "description": "Axial slices of one template brain: a demonstration, not evidence",
            "reference": "MNI152 nonlinear symmetric 2009a (Fonov et al. 2011), as in nilearn",
        },
    )
    return folder


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Make a small 2D nnU-Net dataset of three sites from the MNI152 template that "
        "nilearn ships: one template brain, a demonstration, not clinical evidence."
    )
    parser.add_argument("dataset_id", type=int, help="nnU-Net dataset id, for example 501")
    try:
        folder = prepare(parser.parse_args(argv).dataset_id)
    except DatasetError as error:
        return fail(error)
    print(f"{folder}: cases.csv holds the site of each training case")
    return 0


if __name__ == "__main__":
    sys.exit(main())
