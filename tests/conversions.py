"""Tiny sources of a conversion, and what a conversion made of them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from PIL import Image

from nnunetv2_cls.cli.convert import main

SHAPE = (12, 10)


PATIENTS = [f"p{i}" for i in range(6)]


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    return tmp_path / "raw"


def pixels(value: int, shape: tuple[int, ...] = SHAPE) -> NDArray[np.uint8]:
    image = np.full(shape, value, np.uint8)
    image[0, 0] = 0
    return image


def save(path: Path, value: int = 90, shape: tuple[int, ...] = SHAPE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(value, shape)).save(path)
    return path


def save_colour(path: Path, red: int = 50, alpha: bool = False) -> Path:
    """Red varies, green is 60 and blue 70."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.broadcast_to((red, 60, 70, 128)[: 4 if alpha else 3], (*SHAPE, 4 if alpha else 3))
    Image.fromarray(values.astype(np.uint8)).save(path)
    return path


def save_dicom(path: Path, array: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f"{path.name}.dcm")
    sitk.WriteImage(sitk.GetImageFromArray(array), str(written))
    return written.rename(path)


def write_rows(path: Path, rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def convert(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


def refuse(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail, and return its one line."""
    with pytest.raises(SystemExit, match=r"^2$"):
        convert(*arguments)
    line = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", line)
    return line


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def table(folder: Path, images: str = "imagesTr") -> list[dict[str, str]]:
    """Return the rows of ``cases.csv`` that are of these images."""
    cases = {path.name.rpartition("_")[0] for path in (folder / images).iterdir()}
    with (folder / "cases.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["case"] in cases]


def check_folds(folder: Path, count: int = 5) -> None:
    """Every case is validated once, and no patient is on both sides of a fold."""
    rows = table(folder)
    patients = {row["case"]: row["patient"] for row in rows}
    folds = load(folder / "splits_final.json")
    assert len(folds) == count
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == sorted(patients)
        assert fold["train"] == sorted(fold["train"])
        assert fold["val"] == sorted(fold["val"])
        assert not {patients[c] for c in fold["train"]} & {patients[c] for c in fold["val"]}
    if count == 5:
        assert sorted(case for fold in folds for case in fold["val"]) == sorted(patients)
        classes = {row["case"]: row["class"] for row in rows}
        assert all({classes[c] for c in fold["val"]} == set(classes.values()) for fold in folds)


@pytest.fixture
def kermany(tmp_path: Path) -> Path:
    """Six patients a class, one class with two images each, one image of them in val."""
    root = tmp_path / "kaggle" / "chest_xray"
    for i in range(1, 7):
        save(root / f"train/NORMAL/IM-{i:04d}-0001.jpeg", 80)
        save(root / f"train/PNEUMONIA/person{i}_bacteria_{i}.jpeg", 160)
    for i in range(2, 7):
        save(root / f"train/PNEUMONIA/person{i}_virus_100{i}.jpeg", 160)
    save(root / "train/NORMAL/NORMAL2-IM-0001-0001.jpeg", 80, (*SHAPE, 3))  # RGB, of grey content
    save(root / "val/NORMAL/NORMAL2-IM-0007-0001.jpeg", 80)
    save(root / "val/PNEUMONIA/person1_bacteria_9.jpeg", 160)
    save(root / "test/NORMAL/IM-0001-0001.jpeg", 80)
    save(root / "test/PNEUMONIA/person1_virus_6.jpeg", 160)
    (root / "train/NORMAL/.DS_Store").write_bytes(b"x")
    return root


COLUMNS = [
    *("patientId", "x", "y", "width", "height", "Target"),
    *("class", "age", "sex", "modality", "position"),
]


REST = ["any", "40", "F", "CR", "AP"]


def rsna_rows() -> list[list[str]]:
    sick = [[p, "2.0", "3.0", "4.0", "5.0", "1", *REST] for p in PATIENTS]
    sick.append(["p0", "7", "0", "3", "2", "1", *REST])  # a second box
    return [*sick, *([f"n{i}", "", "", "", "", "0", *REST] for i in range(6))]


@pytest.fixture
def rsna(tmp_path: Path) -> Path:
    root = tmp_path / "rsna"
    write_rows(root / "stage2_train_metadata.csv", [COLUMNS, *rsna_rows()])
    for patient in [*PATIENTS, *(f"n{i}" for i in range(6))]:
        save(root / f"Training/Images/{patient}.png")
    return root


def read_png(path: Path) -> NDArray[Any]:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Colour PNG images: five of class cat, six of class dog."""
    root = tmp_path / "my pets"
    for i in range(5):
        save_colour(root / f"cat/{i}.png")
    for i in range(6):
        save_colour(root / f"dog/{i}.png", 90)
    (root / "README.txt").write_text("not a class")
    return root


def archive(path: Path, shape: tuple[int, ...] = (28, 28), **changes: NDArray[Any] | None) -> Path:
    arrays: dict[str, Any] = {}
    for split, count in (("train", 4), ("val", 3), ("test", 2)):
        arrays[f"{split}_images"] = np.stack([pixels(10 * i + 10, shape) for i in range(count)])
        arrays[f"{split}_labels"] = (np.arange(count, dtype=np.uint8) % 2)[:, None]
    arrays.update(changes)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path
