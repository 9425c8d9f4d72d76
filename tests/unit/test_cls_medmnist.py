"""``nnUNetv2_cls_convert npz``, run as a user runs it but on tiny archives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversions import (
    archive,
    check_folds,
    convert,
    load,
    pixels,
    read_png,
    refuse,
    table,
    write_rows,
)
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from numpy.typing import NDArray


def test_npz(raw: Path, tmp_path: Path) -> None:
    convert("npz", archive(tmp_path / "mini.npz"), 10, "--classes", "normal", "pneumonia")
    folder = raw / "Dataset010_mini"
    assert load(folder / "dataset.json")["classes"] == {"normal": 0, "pneumonia": 1}
    assert load(folder / "splits_final.json") == [
        {
            "train": [f"train_00000{i}" for i in range(4)],
            "val": [f"val_00000{i}" for i in range(3)],
        }
    ]
    check_folds(folder, count=1)
    assert load(folder / "labelsTs.json") == {"test_000000": 0, "test_000001": 1}
    np.testing.assert_array_equal(
        read_png(folder / "imagesTr/train_000003_0000.png"), pixels(40, (28, 28))
    )
    assert table(folder)[3] == {
        "case": "train_000003",
        "class": "pneumonia",
        "patient": "train_000003",
    }


def test_npz_with_patients_on_both_sides(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [*(f"train_00000{i}" for i in range(4)), *(f"val_00000{i}" for i in range(3))]
    rows = [["case", "patient"], *([case, f"p{i % 5}"] for i, case in enumerate(cases))]
    write_rows(tmp_path / "t.csv", rows)
    path = archive(tmp_path / "mini.npz")
    convert("npz", path, 10, "--patients", tmp_path / "t.csv", "--classes", "a", "b", "c")
    folder = raw / "Dataset010_mini"
    assert load(folder / "dataset.json")["classes"] == {"a": 0, "b": 1, "c": 2}
    assert table(folder)[5]["patient"] == "p0"
    warnings = capsys.readouterr().err
    assert "own split has 2 patients in training and in validation (first p0)" in warnings
    assert "no training case is of class c" in warnings


def test_npz_in_colour_without_test(raw: Path, tmp_path: Path) -> None:
    path = archive(tmp_path / "rgb.npz", (28, 28, 3), test_images=None, test_labels=None)
    convert("npz", path, 10, "--name", "Colour")
    folder = raw / "Dataset010_Colour"
    content = load(folder / "dataset.json")
    assert content["channel_names"] == dict.fromkeys("012", "rgb_to_0_1")
    assert content["classes"] == {"class_0": 0, "class_1": 1}
    assert not (folder / "imagesTs").exists()
    image, _ = NaturalImage2DIO().read_images([str(folder / "imagesTr/val_000001_0000.png")])
    assert image.shape == (3, 1, 28, 28)
    assert image[0, 0, 5, 5] == 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_labels": None}, "lacks the array val_labels"),
        ({"test_images": None}, "lacks the array test_images"),
        (
            {"train_images": np.zeros((4, 28, 28, 28), np.uint8)},
            r"shape \(4, 28, 28, 28\); allowed",
        ),
        ({"train_images": np.zeros((4, 28, 28))}, "train_images is float64"),
        ({"train_images": np.zeros((4, 28, 28, 3), np.uint8)}, "mixes greyscale and colour"),
        (
            {"train_labels": np.zeros((4, 14), np.uint8)},
            "has 14 numbers for each image: several labels",
        ),
        ({"train_labels": np.zeros((4, 1))}, "train_labels is float64"),
        ({"train_labels": -np.ones((4, 1), int)}, "negative numbers"),
        ({"train_labels": np.full((4, 1), 2)}, "gives 2 names .* are 0 to 2: give 3"),
        ({"train_images": np.array([None])}, "cannot be read as an .npz archive"),
    ],
)
def test_bad_npz_is_refused(
    raw: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, NDArray[Any] | None],
    message: str,
) -> None:
    path = archive(tmp_path / "bad.npz", **changes)
    assert re.search(message, refuse(capsys, "npz", path, 10, "--classes", "well", "sick"))
    assert not raw.exists()


def test_other_files_are_no_npz(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "single.npy", np.zeros(3))
    for path in (tmp_path / "single.npy", tmp_path / "absent.npz"):
        assert f"{path} is no .npz archive" in refuse(capsys, "npz", path, 10)
    assert not raw.exists()
