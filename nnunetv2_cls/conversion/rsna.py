"""RSNA Pneumonia Detection Challenge: chest X-rays with boxes around opacities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from nnunetv2_cls.conversion.images import count_channels, list_images, read_image, stem
from nnunetv2_cls.conversion.source import Case, Mask, Source, case_name
from nnunetv2_cls.conversion.tables import read_table
from nnunetv2_cls.errors import ClsError

CLASSES = ("no opacity", "pneumonia")
"""By ``Target``. The challenge counts any image without opacity as 0, also abnormal ones."""
DETAILED = {
    "Normal": ("0", "normal"),
    "No Lung Opacity / Not Normal": ("0", "not normal"),
    "Lung Opacity": ("1", "lung opacity"),
}
"""The challenge's detailed classes: their ``Target``, and their names here."""
_NEARLY = 32
"""From black or white, what JPEG leaves of them."""
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
BOX = ("x", "y", "width", "height")


@dataclass(frozen=True)
class Layout:
    """Where things are."""

    table: str
    details: str
    """Table with the column ``class``."""
    images: str
    masks: str
    test: str


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
"""Kaggle's "RSNA pneumonia processed dataset", and the challenge's own files."""


@dataclass(frozen=True)
class Finding:
    """What the table says of a patient."""

    target: str
    boxes: list[tuple[float, ...]] = field(default_factory=list)
    """Each x, y of the upper left corner, width and height, in pixels."""


def read_rsna(folder: Path, *, detailed: bool = False) -> Source:
    """Find the cases; label maps come from the mask files or, without those, from the boxes.

    Parameters
    ----------
    folder
        Holds the files of one of the `LAYOUTS`; images are PNG, JPEG or DICOM. Test images are
        optional, and have no class.
    detailed
        Give the images the challenge's three detailed classes instead of its two targets.

    Raises
    ------
    ClsError
        If a file or column is missing or unreadable, an image has no label, or a label no image.
    """
    layout = next((known for known in LAYOUTS if (folder / known.table).is_file()), None)
    if layout is None:
        tables = " or ".join(known.table for known in LAYOUTS)
        raise ClsError(f"{folder} holds no {tables}: give the folder that does.")
    findings = read_findings(folder / layout.table)
    details = read_details(folder / layout.details, findings) if detailed else {}
    images = _by_stem(folder / layout.images)
    _refuse_unpaired(findings, images, folder, layout)
    masks_folder = folder / layout.masks
    masks = {}
    if layout.masks and masks_folder.is_dir() and any(masks_folder.iterdir()):
        masks = _by_stem(masks_folder)
        _refuse_without_mask(findings, masks, masks_folder)
    softened: list[str] = []
    test = _by_stem(folder / layout.test) if (folder / layout.test).is_dir() else {}
    return Source(
        name="RSNAPneumonia",
        description="Chest X-rays with boxes around opacities (RSNA Pneumonia Detection Challenge)",
        classes=tuple(name for _, name in DETAILED.values()) if detailed else CLASSES,
        training=tuple(
            Case(
                name=case_name(patient),
                patient=None,  # patientId is an image's id
                klass=details[patient] if detailed else CLASSES[int(finding.target)],
                origin=images[patient],
                read=partial(read_image, images[patient], 1),
                mask=partial(read_mask, masks[patient], softened=softened)
                if patient in masks
                else partial(draw_boxes, finding.boxes, patient=patient),
            )
            for patient, finding in sorted(findings.items())
        ),
        test=tuple(
            Case(case_name(patient), None, None, path, partial(read_image, path, 1))
            for patient, path in test.items()
        ),
        labels={"background": 0, "opacity": 1},
        patients_hint=f" RSNA publishes {MAPPING}: give that file.",
        softened=softened,
    )


def read_findings(table: Path) -> dict[str, Finding]:
    """Read the table: a row for each box, or one row without box.

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
    """Read the detailed class of every image, by its name here.

    Raises
    ------
    ClsError
        If an image has no such class, two, or one that contradicts its target.
    """
    found: dict[str, str] = {}
    for row in read_table(table, ("patientId", "class")):
        patient, klass = row["patientId"], row["class"]
        if klass not in DETAILED or found.setdefault(patient, klass) != klass:
            raise ClsError(
                f"{table}: {patient} has the class {klass!r}; one of {', '.join(DETAILED)} is "
                "needed, the same in all its rows."
            )
        if patient in findings and findings[patient].target != DETAILED[klass][0]:
            raise ClsError(
                f"{table}: {patient} has the class {klass!r}, but Target "
                f"{findings[patient].target}: mend one."
            )
    if without := sorted(set(findings) - set(found)):
        raise ClsError(
            f"{table} has no class for {len(without)} images, first {without[0]}: add the rows, or "
            "take --classes 2."
        )
    return {patient: DETAILED[klass][1] for patient, klass in found.items()}


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
    """Read a mask file as 0 and 1.

    Grey edges, as resizing and JPEG make them, are cut at half of white (255).

    Parameters
    ----------
    path
        Of two values, or of black and white with grey edges.
    shape
        Of the image, (rows, columns).
    softened
        The file's name is added to it if it had grey edges.

    Raises
    ------
    ClsError
        If it has more values without being black and white, or is of another shape.
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
    found: dict[str, Path] = {}
    for path in list_images(folder):
        count_channels(path)  # is it an image?
        if found.setdefault(stem(path), path) is not path:
            raise ClsError(f"{found[stem(path)]} and {path} are of the same patient: remove one.")
    return found


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
