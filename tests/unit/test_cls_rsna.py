"""``nnUNetv2_cls_convert rsna``, run as a user runs it but on tiny folders."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conversions import (
    COLUMNS,
    PATIENTS,
    REST,
    SHAPE,
    check_folds,
    convert,
    load,
    names,
    pixels,
    read_png,
    refuse,
    rsna_rows,
    save,
    save_dicom,
    table,
    write_rows,
)
from PIL import Image

from nnunetv2_cls.conversion.rsna import draw_boxes
from nnunetv2_cls.errors import ClsError

BOXES = np.zeros(SHAPE, np.uint8)


BOXES[3:8, 2:6] = 1  # y 3, height 5; x 2, width 4


TWO_BOXES = BOXES.copy()


TWO_BOXES[0:2, 7:10] = 1


def test_rsna_draws_masks_from_boxes(raw: Path, rsna: Path) -> None:
    convert("rsna", rsna, 8)
    folder = raw / "Dataset008_RSNAPneumonia"
    content = load(folder / "dataset.json")
    assert content["labels"] == {"background": 0, "opacity": 1}
    assert content["classes"] == {"no opacity": 0, "pneumonia": 1}
    assert content["numTraining"] == 12
    np.testing.assert_array_equal(read_png(folder / "labelsTr/p0.png"), TWO_BOXES)
    np.testing.assert_array_equal(read_png(folder / "labelsTr/p1.png"), BOXES)
    assert not read_png(folder / "labelsTr/n0.png").any()
    assert load(folder / "labelsTr.json") == {
        **{f"n{i}": 0 for i in range(6)},
        **{f"p{i}": 1 for i in range(6)},
    }
    assert table(folder)[-1] == {"case": "p5", "class": "pneumonia", "patient": "p5"}
    check_folds(folder)


def test_rsna_prefers_mask_files(raw: Path, rsna: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[5, 5] = 255
    for patient in PATIENTS:
        path = rsna / f"Training/Masks/{patient}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(mask).save(path)
    save(rsna / "Test/t0.png")
    convert("rsna", rsna, 8)
    folder = raw / "Dataset008_RSNAPneumonia"
    np.testing.assert_array_equal(read_png(folder / "labelsTr/p0.png"), mask // 255)
    assert not read_png(folder / "labelsTr/n0.png").any()
    assert names(folder / "imagesTs") == ["t0_0000.png"]
    assert not (folder / "labelsTs.json").exists()
    assert "test: 1 without class" in capsys.readouterr().out


def test_rsna_as_published(raw: Path, tmp_path: Path) -> None:
    root = tmp_path / "challenge"
    write_rows(root / "stage_2_train_labels.csv", [COLUMNS[:6], *(row[:6] for row in rsna_rows())])
    for patient in [*PATIENTS, *(f"n{i}" for i in range(6))]:
        save_dicom(root / f"stage_2_train_images/{patient}.dcm", pixels(77))
    save_dicom(root / "stage_2_test_images/t0.dcm", pixels(77))
    convert("rsna", root, 8)
    folder = raw / "Dataset008_RSNAPneumonia"
    np.testing.assert_array_equal(read_png(folder / "imagesTr/p0_0000.png"), pixels(77))
    np.testing.assert_array_equal(read_png(folder / "labelsTr/p0.png"), TWO_BOXES)
    assert names(folder / "imagesTs") == ["t0_0000.png"]


def test_a_box_may_not_leave_the_image() -> None:
    draw_boxes([(0, 0, 10, 12)], SHAPE, patient="p")
    with pytest.raises(ClsError, match=r"the box x 2, .* of p is not within .* 10 x 12 pixels"):
        draw_boxes([(2, 3, 9, 5)], SHAPE, patient="p")


def break_rsna(rsna: Path, what: str) -> None:
    rows = rsna_rows()
    if what == "no table":
        (rsna / "stage2_train_metadata.csv").unlink()
    elif what == "column":
        write_rows(rsna / "stage2_train_metadata.csv", [[*COLUMNS[:5], "T", *COLUMNS[6:]], *rows])
    elif what == "no image":
        (rsna / "Training/Images/p3.png").unlink()
    elif what == "no row":
        save(rsna / "Training/Images/x.png")
    elif what == "no mask":
        save(rsna / "Training/Masks/p0.png")
    elif what == "twice":
        save(rsna / "Training/Images/p3.jpg")
    elif what == "leak":
        save(rsna / "Test/p3.png")
    else:
        rows[1] = {
            "target": ["p1", *rows[1][1:5], "2", *REST],
            "both": ["p0", *rows[1][1:5], "0", *REST],
            "word": ["p1", "2", "three", "4", "5", "1", *REST],
            "box": ["p1", "2", "nan", "4", "5", "1", *REST],
            "outside": ["p1", "2", "3", "400", "500", "1", *REST],
        }[what]
        write_rows(rsna / "stage2_train_metadata.csv", [COLUMNS, *rows])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no table", "rsna holds no stage2_train_metadata.csv or stage_2_train_labels.csv"),
        ("column", "lacks the column Target: it has patientId, x, y, width, height, T,"),
        ("no image", "1 patients of .* have no image in .*/Training/Images, first p3"),
        ("no row", "1 images in .*/Training/Images have no row in .*csv, first x.png"),
        ("no mask", "5 patients of Target 1 have no mask in .*/Training/Masks, first p1"),
        ("twice", "p3.jpg and .*p3.png are of the same patient"),
        ("leak", "Training/Images/p3.png and .*Test/p3.png would both be case p3"),
        ("target", "p1 has Target '2'; allowed are 0 and 1"),
        ("both", "p0 has rows of Target 0 and of Target 1"),
        ("word", "p1 has the box x '2', y 'three', width '4', height '5'; four numbers"),
        ("box", "p1 has the box x '2', y 'nan', width '4', height '5'; four numbers"),
        ("outside", "x 2, y 3, width 400, height 500 of p1 is not within its image of 10 x 12"),
    ],
)
def test_bad_rsna_is_refused(
    raw: Path, rsna: Path, capsys: pytest.CaptureFixture[str], what: str, message: str
) -> None:
    break_rsna(rsna, what)
    assert re.search(message, refuse(capsys, "rsna", rsna, 8))
    assert not raw.exists() or not names(raw)


def test_rsna_with_sick_patients_only(
    raw: Path, rsna: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(rsna / "stage2_train_metadata.csv", [COLUMNS, *rsna_rows()[:7]])
    for i in range(6):
        (rsna / f"Training/Images/n{i}.png").unlink()
    convert("rsna", rsna, 8)
    content = load(raw / "Dataset008_RSNAPneumonia/dataset.json")
    assert content["classes"] == {"no opacity": 0, "pneumonia": 1}
    assert "no training case is of class no opacity" in capsys.readouterr().err


def detailed(klass: str = "Normal") -> list[list[str]]:
    """Rows of the challenge's own layout: half of the images without opacity are not normal."""
    return [
        ["patientId", "class"],
        *([f"p{i}", "Lung Opacity"] for i in range(6)),
        ["p0", "Lung Opacity"],
        *([f"n{i}", klass] for i in range(3)),
        *([f"n{i}", "No Lung Opacity / Not Normal"] for i in range(3, 6)),
    ]


def test_rsna_in_three_classes(raw: Path, rsna: Path) -> None:
    root = rsna.parent / "challenge"
    root.mkdir()
    shutil.copytree(rsna / "Training/Images", root / "stage_2_train_images")
    write_rows(root / "stage_2_train_labels.csv", [COLUMNS[:6], *(row[:6] for row in rsna_rows())])
    write_rows(root / "stage_2_detailed_class_info.csv", detailed())
    convert("rsna", root, 8, "--classes", 3)
    folder = raw / "Dataset008_RSNAPneumonia"
    names = {"normal": 0, "not normal": 1, "lung opacity": 2}
    assert load(folder / "dataset.json")["classes"] == names
    assert Counter(load(folder / "labelsTr.json").values()) == {0: 3, 1: 3, 2: 6}
    assert load(folder / "labelsTr.json")["n4"] == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (detailed("Pneumonia"), "n0 has the class 'Pneumonia'; one of Normal, No Lung Opacity"),
        (detailed("Lung Opacity"), "n0 has the class 'Lung Opacity', but Target 0"),
        (detailed()[:-1], "has no class for 1 images, first n5"),
        ([*detailed(), ["n0", "No Lung Opacity / Not Normal"]], "the same in all its rows"),
    ],
)
def test_bad_detailed_classes_are_refused(
    raw: Path,
    rsna: Path,
    capsys: pytest.CaptureFixture[str],
    rows: Sequence[Sequence[object]],
    message: str,
) -> None:
    (rsna / "stage2_train_metadata.csv").rename(rsna / "stage_2_train_labels.csv")
    (rsna / "Training/Images").rename(rsna / "stage_2_train_images")
    write_rows(rsna / "stage_2_detailed_class_info.csv", rows)
    assert message in refuse(capsys, "rsna", rsna, 8, "--classes", 3)
    assert not raw.exists()


def test_grey_edges_of_masks_are_cut_at_half(
    raw: Path, rsna: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[4:8, 3:7] = 255
    mask[3, 3:6] = (100, 127, 128)
    mask[0, 0], mask[5, 5] = 3, 251  # what JPEG leaves
    for patient in PATIENTS:
        path = rsna / f"Training/Masks/{patient}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(mask).save(path)
    convert("rsna", rsna, 8)
    written = read_png(raw / "Dataset008_RSNAPneumonia/labelsTr/p0.png")
    assert written[4:8, 3:7].all()
    assert written.sum() == 16 + 1
    assert "warning: 6 masks have grey edges (first p0.png): they were cut at half" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(("value", "shape"), [(100, (3, 3)), (None, SHAPE)])
def test_bad_masks_are_refused(
    raw: Path,
    rsna: Path,
    capsys: pytest.CaptureFixture[str],
    value: int | None,
    shape: tuple[int, ...],
) -> None:
    mask = np.arange(np.prod(shape)).reshape(shape) if value is None else pixels(value, shape)
    for patient in PATIENTS:
        path = rsna / f"Training/Masks/{patient}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(mask.astype(np.uint8)).save(path)
    line = refuse(capsys, "rsna", rsna, 8)
    assert ("is of shape (3, 3)" in line) == (value is not None)
    assert ("more than 0 and one other value" in line) == (value is None)
    assert not names(raw)
