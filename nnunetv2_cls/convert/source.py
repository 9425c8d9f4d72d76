"""What a reader found and the writer writes: cases with a class and a patient."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnunetv2_cls.errors import ClsError

Pixels: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.float32]
"""Greyscale of shape (rows, columns), or 8-bit colour of shape (rows, columns, 3).

Floats hold what unsigned numbers of 16 bits cannot: negative values and fractions.
"""
Mask: TypeAlias = NDArray[np.uint8]
"""Label map of shape (rows, columns)."""
Splits: TypeAlias = list[dict[str, list[str]]]
"""Content of ``splits_final.json``: for each fold the cases of ``train`` and ``val``."""

RGB = ("rgb_to_0_1",) * 3
"""nnU-Net divides such channels by 255; a z-score of each would take the colour away."""


@dataclass(frozen=True)
class Case:
    """One image, read when it is written."""

    name: str
    """Case identifier."""
    patient: str
    klass: str | None
    """Class name; None for a test case whose class nobody knows."""
    origin: Path
    """Where it comes from, for messages."""
    read: Callable[[], Pixels]
    mask: Callable[[tuple[int, int]], Mask] | None = None
    """Given the image's (rows, columns), its label map; without it: ones everywhere."""

    def __post_init__(self) -> None:
        if not re.search(r"\w", self.name) or case_name(self.name) != self.name:
            raise ClsError(
                f"{self.origin} would be case {self.name!r}: a case is named with letters, digits, "
                "_ and -; rename the file."
            )


@dataclass(frozen=True)
class Source:
    """A dataset to write."""

    name: str
    """Of the dataset, behind ``DatasetXXX_``."""
    description: str
    classes: tuple[str, ...]
    """By index."""
    training: tuple[Case, ...]
    test: tuple[Case, ...] = ()
    channels: tuple[str, ...] = ("XR",)
    labels: Mapping[str, int] = field(default_factory=lambda: {"background": 0, "image": 1})
    """Of the label maps."""
    splits: Splits | None = None
    """The source's own; without them five folds are drawn."""

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ClsError(
                f"the classes are {', '.join(self.classes) or 'none'}: at least two are needed, "
                "each under its own name."
            )
        for klass in self.classes:
            if all(case.klass != klass for case in self.training):
                raise ClsError(f"no training case is of class {klass}: every class needs some.")
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
        # folded: some file systems do not tell upper from lower case
        other = origins.setdefault(case.name.casefold(), case.origin)
        if other is not case.origin:
            raise ClsError(
                f"{other} and {case.origin} would both be case {case.name}: rename or remove one."
            )
