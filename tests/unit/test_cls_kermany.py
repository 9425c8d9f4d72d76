"""``nnUNetv2_cls_convert kermany``, run as a user runs it but on tiny folders."""

from __future__ import annotations

import csv
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conversions import (
    SHAPE,
    check_folds,
    convert,
    load,
    names,
    refuse,
    save,
    table,
    write_rows,
)
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from PIL import Image

from nnunetv2_cls.conversion.kermany import patient_of

MANIFEST = Path(__file__).parents[3] / "shared" / "data" / "kermany_cxr_manifest.csv"


def test_kermany(raw: Path, kermany: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert("kermany", kermany.parent, 7)
    folder = raw / "Dataset007_KermanyCXR"
    assert names(raw) == [folder.name]
    assert names(folder) == [
        *("cases.csv", "dataset.json", "imagesTr", "imagesTs", "labelsTr", "labelsTr.json"),
        *("labelsTs.json", "splits_final.json"),
    ]
    content = load(folder / "dataset.json")
    assert content["channel_names"] == {"0": "XR"}
    assert content["labels"] == {"background": 0, "image": 1}
    assert content["numTraining"] == 20
    assert content["file_ending"] == ".png"
    assert content["classes"] == {"normal": 0, "pneumonia": 1}
    labels = load(folder / "labelsTr.json")
    assert Counter(labels.values()) == {0: 8, 1: 12}
    assert names(folder / "imagesTr") == [f"{case}_0000.png" for case in labels]
    assert names(folder / "labelsTr") == [f"{case}.png" for case in labels]
    assert load(folder / "labelsTs.json") == {"test_IM-0001-0001": 0, "test_person1_virus_6": 1}
    rows = {row["case"]: row for row in table(folder)}
    assert rows["val_person1_bacteria_9"]["patient"] == "trainval_person1"
    assert rows["train_person1_bacteria_1"]["patient"] == "trainval_person1"
    assert rows["train_NORMAL2-IM-0001-0001"]["class"] == "normal"
    assert "train_person2_virus-1002" in rows  # _1002 would look like a channel
    assert {case: content["classes"][row["class"]] for case, row in rows.items()} == labels
    check_folds(folder)
    tested = {row["case"]: row["patient"] for row in table(folder, "imagesTs")}
    assert tested == {"test_IM-0001-0001": "test_IM-0001", "test_person1_virus_6": "test_person1"}
    assert capsys.readouterr().out.splitlines() == [
        str(folder),
        "training: 8 normal, 12 pneumonia",
        "test: 1 normal, 1 pneumonia",
        "next:",
        "  nnUNetv2_plan_and_preprocess -d 7 -c 2d --verify_dataset_integrity",
        "  nnUNetv2_cls_plan 7",
    ]


def test_nnunet_reads_a_kermany_case(raw: Path, kermany: Path) -> None:
    convert("kermany", kermany, 7)
    folder = raw / "Dataset007_KermanyCXR"
    reader = NaturalImage2DIO()
    image, _ = reader.read_images([str(folder / "imagesTr/train_NORMAL2-IM-0001-0001_0000.png")])
    seg, _ = reader.read_seg(str(folder / "labelsTr/train_NORMAL2-IM-0001-0001.png"))
    assert image.shape == seg.shape == (1, 1, *SHAPE)
    assert (seg == 1).all()
    assert np.median(image) == pytest.approx(80, abs=1)


def test_kermany_size(raw: Path, kermany: Path) -> None:
    convert("kermany", kermany, 7, "--size", 8, "--name", "Small")
    folder = raw / "Dataset007_Small"
    assert load(folder / "dataset.json")["image_size"] == 8
    for path in (*(folder / "imagesTr").iterdir(), *(folder / "labelsTr").iterdir()):
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((8, 8), "L")


def test_val_of_kermany_may_be_absent(raw: Path, kermany: Path) -> None:
    shutil.rmtree(kermany / "val")
    convert("kermany", kermany, 7)
    assert len(table(raw / "Dataset007_KermanyCXR")) == 18


@pytest.mark.parametrize(
    ("stem", "split", "patient"),
    [
        ("person123_bacteria_456", "train", "trainval_person123"),
        ("person447_virus_921_1", "val", "trainval_person447"),
        ("IM-0115-0001", "test", "test_IM-0115"),
        ("NORMAL2-IM-1427-0001-0002", "train", "trainval_NORMAL2-IM-1427"),
        ("NORMAL2-IM-0035-0001", "train", "trainval_NORMAL2-IM-0035"),
        ("NORMAL2-IM-0035-0001", "test", "test_NORMAL2-IM-0035"),
        ("im-0467-0001-0002", "train", "trainval_IM-0467"),
        ("Person96_bacteria_465_jpeg.rf.1f0b2c", "train", "trainval_person96"),
        ("BACTERIA-58730-0004", "train", "patient58730"),
        ("VIRUS-58730-0001", "train", "patient58730"),  # the patient of the line above
        ("NORMAL-2203-0001", "test", "patient2203"),
        ("thorax7", "test", None),
        ("NORMAL-17", "train", None),  # a number of an image, in other collections
        ("personal_bacteria_3", "train", None),
    ],
)
def test_patient_of_kermany(stem: str, split: str, patient: str | None) -> None:
    assert patient_of(stem, split) == patient


@pytest.mark.realdata
def test_patients_of_the_real_kermany_files() -> None:
    if not MANIFEST.is_file():
        pytest.skip(f"{MANIFEST} is not there")
    with MANIFEST.open(newline="") as file:
        for row in csv.DictReader(file):
            stem = Path(row["filename"]).stem
            assert patient_of(stem, row["kaggle_split"]) == row["patient"]


@pytest.fixture
def third_version(tmp_path: Path) -> Path:
    """Six patients a class with two images each, as in version 3 of the publication."""
    root = tmp_path / "ZhangLabData/CellData/chest_xray"
    for i in range(6):
        for k in (1, 2):
            kind = "VIRUS" if i % 2 else "BACTERIA"
            save(root / f"train/NORMAL/NORMAL-{3001 + 17 * i}-{k:04d}.jpeg", 80)
            save(root / f"train/PNEUMONIA/{kind}-{810001 + 13 * i}-{k:04d}.jpeg", 160)
    save(root / "test/NORMAL/NORMAL-99-0001.jpeg", 80)
    save(root / "test/PNEUMONIA/VIRUS-77-0003.jpeg", 160)
    return tmp_path / "ZhangLabData"


def test_third_version_of_kermany(
    raw: Path, third_version: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert("kermany", third_version, 7)
    folder = raw / "Dataset007_KermanyCXR"
    assert len({row["patient"] for row in table(folder)}) == 12
    check_folds(folder)
    assert not capsys.readouterr().err


def test_kermany_of_other_names_needs_a_table(
    raw: Path, third_version: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = third_version / "CellData/chest_xray"
    for klass in ("NORMAL", "PNEUMONIA"):
        for i, path in enumerate(sorted((root / "train" / klass).iterdir())):
            path.rename(path.with_name(f"{klass.lower()}{i}.jpeg"))
    convert("kermany", third_version, 7)
    assert re.search(
        r"warning: the patients of 24 of 24 training images are unknown \(first normal0.jpeg\): "
        ".* with --patients",
        capsys.readouterr().err,
    )
    rows = [
        [f"train/{klass.upper()}/{klass}{i}.jpeg", f"{klass}{i // 2}"]
        for klass in ("normal", "pneumonia")
        for i in range(12)
    ]
    write_rows(root / "patients.csv", [["file", "patient"], *rows])
    convert("kermany", third_version, 7, "--overwrite", "--patients", root / "patients.csv")
    folder = raw / "Dataset007_KermanyCXR"
    assert len({row["patient"] for row in table(folder)}) == 12
    check_folds(folder)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("what", ["train", "train/PNEUMONIA", "test/NORMAL"])
def test_kermany_needs_its_folders(
    raw: Path, kermany: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    shutil.rmtree(kermany / what)
    assert re.search(
        f"(no folder {what}|{what} is no folder)", refuse(capsys, "kermany", kermany, 7)
    )
    assert "--size 0" in refuse(capsys, "kermany", kermany, 7, "--size", 0)
    assert not raw.exists()
