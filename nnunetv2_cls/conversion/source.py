"""A dataset between reader and writer: cases with a class and a patient."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.splits import Splits

Pixels: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.float32]
"""Greyscale of shape (rows, columns), or 8-bit colour of shape (rows, columns, 3).

Floats hold the values that unsigned numbers of 16 bits cannot: negative ones and fractions.
"""
Mask: TypeAlias = NDArray[np.uint8]
"""Label map of shape (rows, columns)."""

BYTES = "rgb_to_0_1"
"""Channel name for which nnU-Net divides by 255, and accepts no other values than 0 to 255."""
RGB = (BYTES,) * 3
"""Channel names of colour, which a z-score of each channel would remove."""


@dataclass(frozen=True)
class Case:
    """One image, which is read when it is written."""

    name: str
    """Case identifier."""
    patient: str | None
    """``None`` if the source does not say."""
    klass: str | None
    """Class name; ``None`` for a test case whose class is unknown."""
    origin: Path
    """File of the image, for messages."""
    read: Callable[[], Pixels]
    """Reads the image."""
    mask: Callable[[tuple[int, int]], Mask] | None = None
    """Makes the label map of an image of (rows, columns); ``None`` for ones everywhere."""

    def __post_init__(self) -> None:
        if not re.search(r"\w", self.name) or case_name(self.name) != self.name:
            raise ClsError(
                f"{self.origin} would be case {self.name!r}: a case is named with letters, digits, "
                "_ and -; rename the file."
            )


@dataclass(frozen=True)
class Source:
    """Dataset to write."""

    name: str
    """Name of the dataset, behind ``DatasetXXX_``."""
    description: str
    classes: tuple[str, ...]
    """Class names by index."""
    training: tuple[Case, ...]
    test: tuple[Case, ...] = ()
    channels: tuple[str, ...] = ("XR",)
    labels: Mapping[str, int] = field(default_factory=lambda: {"background": 0, "image": 1})
    """Names and values of the labels in the label maps."""
    splits: Splits | None = None
    """Folds that the source comes with; ``None`` to draw five."""
    softened: list[str] = field(default_factory=list)
    """Names of the masks with grey edges, cut at half of white; filled while they are read."""
    size: int | None = None
    """Pixels a side to which images are resized, as those to predict must be."""
    patients_hint: str = ""
    """Sentence that tells where to find the patients, if the source does not name them."""

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ClsError(
                f"the classes are {', '.join(self.classes) or 'none'}: at least two are needed, "
                "each under its own name; --classes names those of the federation, of which a "
                "site may lack some."
            )
        if not self.training:
            raise ClsError("there is no training case: give a folder with images.")
        _refuse_equal_names((*self.training, *self.test))


def case_name(*parts: str) -> str:
    """Join parts to a case identifier that is safe as a file name.

    Anything but letters, digits and ``-`` becomes ``_``. An end such as ``_0001``, which nnU-Net
    could take for a channel, becomes ``-0001``.
    """
    name = re.sub(r"[^\w-]+", "_", "_".join(parts)).strip("_")
    return re.sub(r"_(\d{4})$", r"-\1", name)


def _refuse_equal_names(cases: Sequence[Case]) -> None:
    origins: dict[str, Path] = {}
    for case in cases:
        # some file systems do not distinguish upper and lower case
        other = origins.setdefault(case.name.casefold(), case.origin)
        if other is not case.origin:
            raise ClsError(
                f"{other} and {case.origin} would both be case {case.name}: rename or remove one."
            )
