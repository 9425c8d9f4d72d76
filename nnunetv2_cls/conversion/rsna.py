"""Read the RSNA Pneumonia Detection Challenge: chest X-rays with boxes around opacities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from nnunetv2_cls.conversion.images import count_channels, list_images, read_image, stem
from nnunetv2_cls.conversion.source import Case, Mask, Source, case_name
from nnunetv2_cls.defaults import MAPPING
from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.tables import read_table

CLASSES = ("no opacity", "pneumonia")
"""Class names by ``Target``, which is 0 for every image without opacity, also an abnormal one."""
DETAILED = {
    "Normal": ("0", "normal"),
    "No Lung Opacity / Not Normal": ("0", "not normal"),
    "Lung Opacity": ("1", "lung opacity"),
}
"""The challenge's detailed classes: ``Target`` and class name of each."""
_NEARLY = 32
"""Largest distance from black or white of what JPEG makes of them."""
BOX = ("x", "y", "width", "height")
"""Columns of a box."""


@dataclass(frozen=True)
class Layout:
    """Tables and folders of the dataset, as one of its publishers names them."""

    table: str
    """Table of the targets and boxes."""
    details: str
    """Table with the column ``class``."""
    images: str
    masks: str
    """Folder of the mask files; empty if this publisher has none."""
    test: str
    """Folder of the test images."""


LAYOUTS = (
    Layout(
        *("stage2_train_metadata.csv", "stage2_train_metadata.csv"),
        *("Training/Images", "Training/Masks", "Test"),
    ),
    Layout(
        *("stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"),
        *("stage_2_train_images", "", "stage_2_test_images"),
    ),
)
"""Layouts of Kaggle's "RSNA pneumonia processed dataset", and of the challenge's own files."""


@dataclass(frozen=True)
class Finding:
    """Target and boxes of one image."""

    target: str
    boxes: list[tuple[float, ...]] = field(default_factory=list)
    """For each box x and y of the upper left corner, width and height, in pixels."""


def read_rsna(folder: Path, *, detailed: bool = False) -> Source:
    """Find the cases; label maps come from the mask files or, without those, from the boxes.

    Parameters
    ----------
    folder
        Folder with the files of one of the `LAYOUTS`; images are PNG, JPEG or DICOM. Test images
        are optional, and have no class.
    detailed
        Take the challenge's three detailed classes in place of its two targets.

    Raises
    ------
    ClsError
        If a file or a column is missing or cannot be read, an image has no label, or a label no
        image.
    """
    layout = _find_layout(folder)
    findings = read_findings(folder / layout.table)
    details = read_details(folder / layout.details, findings) if detailed else {}
    images = _by_stem(folder / layout.images)
    _refuse_unpaired(findings, images, folder, layout)
    masks = _find_masks(folder, layout, findings)
    softened: list[str] = []

    def case(patient: str, finding: Finding) -> Case:
        return Case(
            name=case_name(patient),
            patient=None,  # patientId is the id of an image
            klass=details[patient] if detailed else CLASSES[int(finding.target)],
            origin=images[patient],
            read=partial(read_image, images[patient], 1),
            mask=partial(read_mask, masks[patient], softened=softened)
            if patient in masks
            else partial(draw_boxes, finding.boxes, patient=patient),
        )

    return Source(
        name="RSNAPneumonia",
        description="Chest X-rays with boxes around opacities (RSNA Pneumonia Detection Challenge)",
        classes=tuple(name for _, name in DETAILED.values()) if detailed else CLASSES,
        training=tuple(case(patient, findings[patient]) for patient in sorted(findings)),
        test=_test_cases(folder / layout.test),
        labels={"background": 0, "opacity": 1},
        patients_hint=f" RSNA publishes {MAPPING}: give that file.",
        softened=softened,
    )


def _find_layout(folder: Path) -> Layout:
    layout = next((known for known in LAYOUTS if (folder / known.table).is_file()), None)
    if layout is None:
        tables = " or ".join(known.table for known in LAYOUTS)
        raise ClsError(f"{folder} holds no {tables}: give the folder that does.")
    return layout


def _find_masks(folder: Path, layout: Layout, findings: Mapping[str, Finding]) -> dict[str, Path]:
    """Return the mask file of each patient; none if label maps are to be drawn from the boxes."""
    masks_folder = folder / layout.masks
    if not (layout.masks and masks_folder.is_dir() and any(masks_folder.iterdir())):
        return {}
    masks = _by_stem(masks_folder)
    _refuse_without_mask(findings, masks, masks_folder)
    return masks


def _test_cases(folder: Path) -> tuple[Case, ...]:
    """Return the test images, which are optional and have no class."""
    images = _by_stem(folder) if folder.is_dir() else {}
    return tuple(
        Case(case_name(patient), None, None, path, partial(read_image, path, 1))
        for patient, path in images.items()
    )


def read_findings(table: Path) -> dict[str, Finding]:
    """Read the table of the boxes: a row for each box, or one row without box.

    Raises
    ------
    ClsError
        If a target is neither 0 nor 1 or differs between a patient's rows, or a box is incomplete.
    """
    findings: dict[str, Finding] = {}
    for row in read_table(table, ("patientId", *BOX, "Target")):
        patient = row["patientId"]
        if row["Target"] not in ("0", "1"):
            raise ClsError(f"{table}: {patient} has Target {row['Target']!r}; allowed are 0 and 1.")
        finding = findings.setdefault(patient, Finding(row["Target"]))
        if finding.target != row["Target"]:
            raise ClsError(f"{table}: {patient} has rows of Target 0 and of Target 1; keep one.")
        if finding.target == "1":
            finding.boxes.append(_read_box(row, table))
    return findings


def read_details(table: Path, findings: Mapping[str, Finding]) -> dict[str, str]:
    """Read the detailed class of every image, as a class name.

    Raises
    ------
    ClsError
        If an image has no detailed class, two, or one that contradicts its target.
    """
    classes: dict[str, str] = {}
    for row in read_table(table, ("patientId", "class")):
        patient, klass = row["patientId"], row["class"]
        if klass not in DETAILED or classes.setdefault(patient, klass) != klass:
            raise ClsError(
                f"{table}: {patient} has the class {klass!r}; one of {', '.join(DETAILED)} is "
                "needed, the same in all its rows."
            )
        if patient in findings and findings[patient].target != DETAILED[klass][0]:
            raise ClsError(
                f"{table}: {patient} has the class {klass!r}, but Target "
                f"{findings[patient].target}: fix one."
            )
    if without := sorted(set(findings) - set(classes)):
        raise ClsError(
            f"{table} has no class for {len(without)} images, first {without[0]}: add the rows, or "
            "take --classes 2."
        )
    return {patient: DETAILED[klass][1] for patient, klass in classes.items()}


def draw_boxes(boxes: Iterable[Sequence[float]], shape: tuple[int, int], *, patient: str) -> Mask:
    """Draw boxes (x, y, width, height) into a label map of shape (rows, columns).

    Raises
    ------
    ClsError
        If a box leaves the image.
    """
    mask = np.zeros(shape, np.uint8)
    for x, y, width, height in boxes:
        left, top, right, bottom = (round(edge) for edge in (x, y, x + width, y + height))
        if not (0 <= left < right <= shape[1] and 0 <= top < bottom <= shape[0]):
            raise ClsError(
                f"the box x {x:g}, y {y:g}, width {width:g}, height {height:g} of {patient} is not "
                f"within its image of {shape[1]} x {shape[0]} pixels (width x height): are the "
                "images of the size that the table was made for?"
            )
        mask[top:bottom, left:right] = 1
    return mask


def read_mask(path: Path, shape: tuple[int, int], softened: list[str]) -> Mask:
    """Read a mask file as a label map of 0 and 1.

    Grey edges, as resizing and JPEG make them, are cut at half of white (255).

    Parameters
    ----------
    path
        Mask of two values, or of black and white with grey edges.
    shape
        Shape of the image, (rows, columns).
    softened
        List to which the file's name is added if the mask had grey edges.

    Raises
    ------
    ClsError
        If the mask has more values without being black and white, or another shape.
    """
    mask = read_image(path, 1)
    if mask.shape != shape:
        raise ClsError(f"{path} is of shape {mask.shape}, its image of {shape}: replace one.")
    if not ((mask != 0) & (mask != mask.max())).any():
        return np.not_equal(mask, 0).astype(np.uint8)
    white = mask > 255 - _NEARLY
    grey = (mask >= _NEARLY) & ~white
    if mask.max() > 255 or grey.sum() >= white.sum():
        raise ClsError(
            f"{path} holds more than 0 and one other value, and is not black and white with grey "
            "edges: save it as a mask of two values."
        )
    softened.append(path.name)
    return np.greater(mask, 127).astype(np.uint8)


def _read_box(row: Mapping[str, str], table: Path) -> tuple[float, ...]:
    try:
        box = tuple(float(row[name]) for name in BOX)
    except ValueError:
        box = (math.nan,)
    if not all(map(math.isfinite, box)):
        shown = ", ".join(f"{name} {row[name]!r}" for name in BOX)
        raise ClsError(f"{table}: {row['patientId']} has the box {shown}; four numbers are needed.")
    return box


def _by_stem(folder: Path) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for path in list_images(folder):
        count_channels(path)  # refuses a file that is no image
        if paths.setdefault(stem(path), path) is not path:
            raise ClsError(f"{paths[stem(path)]} and {path} are of the same patient: remove one.")
    return paths


def _refuse_unpaired(
    findings: Mapping[str, Finding], images: Mapping[str, Path], folder: Path, layout: Layout
) -> None:
    table, images_folder = folder / layout.table, folder / layout.images
    if without := sorted(set(findings) - set(images)):
        raise ClsError(
            f"{len(without)} patients of {table} have no image in {images_folder}, first "
            f"{without[0]}: add the images, or remove the rows."
        )
    if without := sorted(set(images) - set(findings)):
        raise ClsError(
            f"{len(without)} images in {images_folder} have no row in {table}, first "
            f"{images[without[0]].name}: add the rows, or remove the images."
        )


def _refuse_without_mask(
    findings: Mapping[str, Finding], masks: Mapping[str, Path], folder: Path
) -> None:
    without = sorted(
        p for p, finding in findings.items() if finding.target == "1" and p not in masks
    )
    if without:
        raise ClsError(
            f"{len(without)} patients of Target 1 have no mask in {folder}, first {without[0]}: "
            "add the masks, or move the folder away to draw all from the boxes."
        )
