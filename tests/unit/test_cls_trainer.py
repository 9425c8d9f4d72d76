"""Augmentation of the trainer."""

from __future__ import annotations

import pytest

from nnunetv2_cls.trainer import left_right_axes


@pytest.mark.parametrize(
    ("transpose_forward", "dimensions", "expected"),
    [
        ([0, 1, 2], 2, (1,)),
        ([0, 1, 2], 3, (2,)),
        ([2, 0, 1], 3, (0,)),  # sagittal: x has the largest spacing
        ([1, 0, 2], 3, (2,)),
        ([0, 2, 1], 2, (0,)),
        ([2, 0, 1], 2, ()),  # x is the axis that a 2D configuration does not see
    ],
)
def test_the_mirrored_axis_is_x_of_the_file(
    transpose_forward: list[int], dimensions: int, expected: tuple[int, ...]
) -> None:
    assert left_right_axes(transpose_forward, dimensions) == expected
