"""Headers of images, against what a configuration takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.preprocess import ExpectedImages, check_images, raw_cases


def test_images_that_a_configuration_does_not_take_are_named(tmp_path: Path) -> None:
    shapes = {"flat": (8, 8), "slice": (1, 8, 8), "volume": (4, 8, 8), "series": (2, 4, 8, 8)}
    for name, shape in shapes.items():
        image = sitk.GetImageFromArray(np.zeros(shape, np.uint8), isVector=False)
        sitk.WriteImage(image, str(tmp_path / f"{name}_0000.nii.gz"))
    cases = raw_cases(tmp_path, ".nii.gz")
    assert set(cases) == set(shapes)

    def wrong(*, flat: bool) -> str:
        with pytest.raises(ClsError) as error:
            check_images(cases, ExpectedImages(1, flat, "SimpleITKIO", (0, 1, 2)), "-i in")
        return str(error.value)

    assert "1 images have 4 slices, of which a 2D configuration sees one (volume)" in wrong(
        flat=True
    )
    assert "1 images have 2 channels in 1 files, not 1 (series)" in wrong(flat=True)
    assert "1 images are 2D, the configuration takes volumes (flat)" in wrong(flat=False)
    assert "(volume" not in wrong(flat=False)
