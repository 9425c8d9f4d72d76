"""What is checked before a training: dimensions, test images and their labels."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cls_dataset import PLANS, Folders, save

from nnunetv2_cls.checks import check_dimensions, labelled_tests, x_is_left_right
from nnunetv2_cls.errors import ClsError


def test_test_images_and_their_labels_agree_before_training(
    folders: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    def tests() -> tuple[dict[str, int], dict[str, list[str]]]:
        return labelled_tests(PLANS, "2d_cls", folders.dataset_json, ("naevus", "melanoma"))

    images = folders.raw / "imagesTs"
    assert tests() == ({}, {})
    (folders.raw / "labelsTs.json").write_text('{"t": 1, "u": 0}')
    with pytest.raises(ClsError, match=r"labelsTs\.json of .* has 2 cases without image \(t, u\)"):
        tests()
    save(images / "t_0000.png", 8, 8)
    save(images / "u.png", 8, 8)
    with pytest.raises(ClsError, match=r"1 cases without image \(u\): a case X is imagesTs/X_0000"):
        tests()
    save(images / "u_0000.png", 8, 8, 3)
    with pytest.raises(ClsError, match=r"1 images have 3 channels in 1 files, not 1 \(u\)"):
        tests()
    (images / "u_0000.png").unlink()
    (images / "u_0000.png").write_text("no image")
    with pytest.raises(ClsError, match=r"1 cannot be read \(u\)"):
        tests()
    (images / "u_0000.png").unlink()
    save(images / "u_0000.png", 8, 8)

    labels, files = tests()

    assert labels == {"t": 1, "u": 0}
    assert files["u"] == [str(images / "u_0000.png")]
    assert "1 of 3 files in" in caplog.text
    assert "(u.png): they are not judged" in caplog.text


def volumes_plans(slices: float) -> dict[str, Any]:
    return {
        **PLANS,
        "original_median_shape_after_transp": [slices, 64, 64],
        "transpose_forward": [2, 0, 1],
    }


def test_a_2d_configuration_of_volumes_is_refused(folders: Folders) -> None:
    check_dimensions(volumes_plans(1), "2d_cls")
    with pytest.raises(ClsError, match=r"volumes \(up to 30 slices\).* -c 3d_fullres"):
        check_dimensions(volumes_plans(30), "2d_cls")
    # one volume among many images; the slices are along the file's last axis
    (folders.preprocessed / "dataset_fingerprint.json").write_text(
        json.dumps({"shapes_after_crop": [[64, 64, 1], [64, 64, 1], [60, 60, 12]]})
    )
    with pytest.raises(ClsError, match=r"volumes \(up to 12 slices\)"):
        check_dimensions(volumes_plans(1), "2d_cls")


@pytest.mark.parametrize(
    ("direction", "expected"),
    [
        ((1, 0, 0, 0, 1, 0, 0, 0, 1), True),
        ((-0.9, 0.4, 0, 0.4, 0.9, 0, 0, 0, 1), True),  # from right to left, and oblique
        ((0, 0, 1, 1, 0, 0, 0, -1, 0), False),  # sagittal: the file's x runs from front to back
        ((1, 0, 0, 1), True),  # of a 2D file: not told
    ],
)
def test_left_and_right_of_a_volume(direction: tuple[float, ...], *, expected: bool) -> None:
    assert x_is_left_right({"sitk_stuff": {"direction": direction}}) is expected
