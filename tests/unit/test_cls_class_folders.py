"""``nnUNetv2_cls_convert folder``, run as a user runs it but on tiny folders."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conversions import (
    SHAPE,
    check_folds,
    convert,
    load,
    names,
    read_png,
    refuse,
    save,
    save_colour,
    save_dicom,
    table,
    write_rows,
)
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO


def test_class_folders_in_colour(raw: Path, classes: Path) -> None:
    save_colour(classes / "cat/0.png", 80, alpha=True)  # with alpha, which is left out
    convert("folder", classes, 9)
    folder = raw / "Dataset009_my_pets"
    content = load(folder / "dataset.json")
    assert content["channel_names"] == dict.fromkeys("012", "rgb_to_0_1")
    assert content["classes"] == {"cat": 0, "dog": 1}
    assert not (folder / "imagesTs").exists()
    assert not (folder / "labelsTs.json").exists()
    assert table(folder)[0] == {"case": "cat_0", "class": "cat", "patient": "cat_0"}
    check_folds(folder)
    image, _ = NaturalImage2DIO().read_images([str(folder / "imagesTr/cat_0_0000.png")])
    assert image.shape == (3, 1, *SHAPE)
    assert image[:, 0, 5, 5].tolist() == [80, 60, 70]
    np.testing.assert_array_equal(read_png(folder / "labelsTr/cat_0.png"), np.ones(SHAPE))


def test_class_folders_with_patients_and_test(raw: Path, classes: Path, tmp_path: Path) -> None:
    save_colour(classes / "dog/again.png", 90)
    rows = [[f"{klass}/{i}.png", f"p{i}"] for klass in ("cat", "dog") for i in range(6)]
    write_rows(tmp_path / "patients.csv", [["patient", "file"], *([p, f] for f, p in rows)])
    with (tmp_path / "patients.csv").open("a") as file:
        file.write("p5,again.png\n")
    for klass in ("cat", "dog"):
        save_colour(tmp_path / f"holdout/{klass}/0.png")
    arguments = ("--patients", tmp_path / "patients.csv", "--test", tmp_path / "holdout")
    convert("folder", classes, 9, *arguments)
    folder = raw / "Dataset009_my_pets"
    patients = {row["case"]: row["patient"] for row in table(folder)}
    assert patients["cat_3"] == patients["dog_3"] == "p3"
    assert patients["dog_again"] == "p5"
    check_folds(folder)
    assert load(folder / "labelsTs.json") == {"test_cat_0": 0, "test_dog_0": 1}
    assert names(folder / "imagesTs") == ["test_cat_0_0000.png", "test_dog_0_0000.png"]


def test_mixed_images_need_grey(
    raw: Path, classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_dicom(classes / "dog/x.dcm", np.full(SHAPE, 300, np.uint16))
    line = refuse(capsys, "folder", classes, 9)
    assert re.search(r"dog/x.dcm has 1 channel, .*cat/0.png has 3: .*--grey", line)
    assert not raw.exists()
    convert("folder", classes, 9, "--grey")
    folder = raw / "Dataset009_my_pets"
    assert load(folder / "dataset.json")["channel_names"] == {"0": "grey"}
    # 0.299 * 50 + 0.587 * 60 + 0.114 * 70
    assert (read_png(folder / "imagesTr/cat_0_0000.png") == 58).all()
    assert read_png(folder / "imagesTr/dog_x_0000.png").dtype == np.uint16


def add_text(root: Path) -> None:
    (root / "cat/notes.txt").write_text("x")


def add_nested_folder(root: Path) -> None:
    (root / "cat/more").mkdir()


def damage(root: Path) -> None:
    (root / "cat/0.png").write_bytes(b"no image")


def damage_dicom(root: Path) -> None:
    (root / "cat/0.dcm").write_bytes(b"no image")


def truncate(root: Path) -> None:
    path = root / "dog/5.png"
    path.write_bytes(path.read_bytes()[:-30])


def add_same_name(root: Path) -> None:
    save_colour(root / "cat/0.jpg")


def leave_one_class(root: Path) -> None:
    shutil.rmtree(root / "cat")


def leave_no_class(root: Path) -> None:
    shutil.rmtree(root / "cat")
    shutil.rmtree(root / "dog")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "my pets is no folder"),
        (leave_no_class, "has no sub-folders"),
        (leave_one_class, "the classes are dog: at least two"),
        (add_text, "notes.txt is no image: PNG"),
        (add_nested_folder, "cat/more is no image"),
        (add_same_name, "cat/0.jpg and .*cat/0.png would both be case cat_0"),
        (damage, "cat/0.png cannot be read as an image"),
        (damage_dicom, "cat/0.dcm cannot be read as an image"),
        (truncate, "dog/5.png cannot be read as an image"),
    ],
)
def test_bad_class_folders_are_refused(
    raw: Path,
    classes: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], object],
    message: str,
) -> None:
    spoil(classes)
    assert re.search(message, refuse(capsys, "folder", classes, 9))
    assert not raw.exists() or not names(raw)


def test_test_folders_need_the_same_classes(
    raw: Path, classes: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    save(tmp_path / "holdout/cat/0.png")
    line = refuse(capsys, "folder", classes, 9, "--test", tmp_path / "holdout")
    assert re.search("holdout has the classes cat; .* has cat, dog: both need the same", line)
    assert not raw.exists()


def test_a_site_of_one_class(raw: Path, classes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(classes / "cat")
    for i in range(2, 6):
        (classes / f"dog/{i}.png").unlink()
    convert("folder", classes, 9, "--classes", "fox", "dog", "cat")
    folder = raw / "Dataset009_my_pets"
    assert load(folder / "dataset.json")["classes"] == {"fox": 0, "dog": 1, "cat": 2}
    assert load(folder / "labelsTr.json") == {"dog_0": 1, "dog_1": 1}
    cases = {"dog_0", "dog_1"}
    folds = load(folder / "splits_final.json")
    assert [len(fold["val"]) for fold in folds] == [1, 1, 0, 0, 0]
    assert all({*fold["train"], *fold["val"]} == cases for fold in folds)
    warnings = capsys.readouterr().err
    assert "no training case is of class fox, cat: a site" in warnings
    assert "class dog has 2 patients: not all of the 5 folds have one" in warnings


def test_a_site_of_one_image(raw: Path, classes: Path) -> None:
    shutil.rmtree(classes / "cat")
    for i in range(1, 6):
        (classes / f"dog/{i}.png").unlink()
    convert("folder", classes, 9, "--classes", "dog", "cat")
    folds = load(raw / "Dataset009_my_pets/splits_final.json")
    assert folds == [{"train": ["dog_0"], "val": []}] * 5


def test_a_class_folder_may_be_empty(
    raw: Path, classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (classes / "emu").mkdir()
    convert("folder", classes, 9)
    folder = raw / "Dataset009_my_pets"
    assert load(folder / "dataset.json")["classes"] == {"cat": 0, "dog": 1, "emu": 2}
    assert "no training case is of class emu" in capsys.readouterr().err


def test_all_class_folders_may_not_be_empty(
    raw: Path, classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("cat", "dog"):
        shutil.rmtree(classes / folder)
        (classes / folder).mkdir()
    assert "my pets holds no image in any" in refuse(capsys, "folder", classes, 9)
    assert not raw.exists()


def test_sub_folders_are_among_the_classes(
    raw: Path, classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refuse(capsys, "folder", classes, 9, "--classes", "dog", "Cat")
    assert "my pets has the sub-folder cat; --classes has dog, Cat" in line
    assert not raw.exists()
