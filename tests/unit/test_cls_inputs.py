"""Cases of a folder that is to be predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from cls_dataset import save
from PIL import Image

from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.inputs import find_inputs
from nnunetv2_cls.preprocess import ExpectedImages

GREY, COLOUR = (ExpectedImages(n, True, "NaturalImage2DIO", (0, 1, 2)) for n in (1, 3))


def save_dicom(path: Path) -> None:
    image = sitk.GetImageFromArray(np.full((1, 8, 8), 300, np.uint16))
    sitk.WriteImage(image, str(path.with_suffix(".dcm")))
    path.with_suffix(".dcm").rename(path)


def test_prediction_takes_images_of_any_kind_and_name(tmp_path: Path) -> None:
    save(tmp_path / "a_0000.png", 8, 8)
    save(tmp_path / "scan_0001.png", 8, 8)  # a person's number, no channel
    save(tmp_path / "scan_0002.png", 8, 8)
    save(tmp_path / "photo.JPG", 8, 8)
    save(tmp_path / "screenshot.png", 8, 8, 3)  # colour by its form only
    save_dicom(tmp_path / "1.2.840.99")
    (tmp_path / "torn.png").write_text("no image")
    (tmp_path / ".DS_Store").write_text("")

    found = find_inputs(tmp_path, ".png", GREY)

    assert set(found.files) == {
        "a", "scan_0001", "scan_0002", "photo", "screenshot", "1.2.840.99"
    }  # fmt: skip
    assert found.converted == set(found.files) - {"a"}
    assert set(found.unreadable) == {"torn"}


def test_a_colour_model_takes_one_file_or_three(tmp_path: Path) -> None:
    Image.fromarray(np.eye(24, dtype=np.uint8).reshape(8, 24, 3) * 9).save(tmp_path / "one.png")
    for channel in range(3):
        save(tmp_path / f"three_{channel:04d}.png", 8, 8)

    found = find_inputs(tmp_path, ".png", COLOUR)

    assert {case: len(files) for case, files in found.files.items()} == {"one": 1, "three": 3}
    assert found.converted == {"one"}


def test_images_that_a_model_does_not_take_are_named_before_predicting(tmp_path: Path) -> None:
    with pytest.raises(ClsError, match="is no folder"):
        find_inputs(tmp_path / "none", ".png", GREY)
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 9
    Image.fromarray(red).save(tmp_path / "red.png")
    with pytest.raises(ClsError, match=r"1 files have 3 channels, not 1 \(red.png\)"):
        find_inputs(tmp_path, ".png", GREY)
    Image.fromarray(red).save(tmp_path / "red.bmp")
    with pytest.raises(ClsError, match=r"red\.bmp and .*red\.png would both be case red"):
        find_inputs(tmp_path, ".png", COLOUR)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ClsError, match=r"notes\.txt is no image"):
        find_inputs(tmp_path, ".png", COLOUR)


def test_a_model_of_volumes_takes_volumes_without_suffix(tmp_path: Path) -> None:
    def volume(name: str, *shape: int) -> None:
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros(shape, np.uint8)), str(tmp_path / name))

    volume("left.nii.gz", 4, 8, 8)
    volume("right_0000.nii.gz", 4, 8, 8)
    one, two = (ExpectedImages(n, False, "SimpleITKIO", (0, 1, 2)) for n in (1, 2))

    assert set(find_inputs(tmp_path, ".nii.gz", one).files) == {"left", "right"}
    with pytest.raises(ClsError, match=r"2 files have 1 channels in 1 files, not 2 \(a case of s"):
        find_inputs(tmp_path, ".nii.gz", two)
    volume("flat.nii.gz", 8, 8)
    save(tmp_path / "photo.png", 8, 8)
    with pytest.raises(ClsError, match=r"are 2D.* \(flat.nii.gz\); 1 files are not \.nii\.gz"):
        find_inputs(tmp_path, ".nii.gz", one)
