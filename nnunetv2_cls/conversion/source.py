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

BYTES = "rgb_to_0_1"
"""nnU-Net divides a channel of this name by 255, and accepts no other values than 0 to 255."""
RGB = (BYTES,) * 3
"""A z-score of each channel would take the colour away."""


@dataclass(frozen=True)
class Case:
    """One image, read when it is written."""

    name: str
    """Case identifier."""
    patient: str | None
    """None where the source does not tell."""
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
    softened: list[str] = field(default_factory=list)
    """Masks with grey edges that were cut at half of white, known when they were read."""
    size: int | None = None
    """Pixels a side to which images were squashed, as those to predict must be."""
    patients_hint: str = ""
    """Where this source's patients are to be found, if it does not tell them itself."""

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

    def warnings(self) -> list[str]:
        """Say what is allowed, but may not be meant; all of it once the cases were read."""
        found = []
        if self.softened:
            found.append(
                f"{len(self.softened)} masks have grey edges (first {self.softened[0]}): they "
                "were cut at half of white, 128."
            )
        known = {case.name: case.patient for case in self.training}
        present = {case.klass for case in self.training}
        if absent := [klass for klass in self.classes if klass not in present]:
            found.append(
                f"no training case is of class {', '.join(absent)}: a site of a federation may "
                "lack a class, but nobody can learn it here alone."
            )
        if unknown := [case for case in self.training if case.patient is None]:
            found.append(
                f"the patients of {len(unknown)} of {len(self.training)} training images are "
                f"unknown (first {unknown[0].origin.name}): each counts as a patient of its own, "
                "so that images of one patient may be in training and in validation. Give a table "
                f"with the columns file and patient with --patients.{self.patients_hint}"
            )
        for split in self.splits or ():
            train, val = ({known.get(name) for name in split[p]} - {None} for p in ("train", "val"))
            if both := sorted(train & val, key=str):
                found.append(
                    f"the source's own split has {len(both)} patients in training and in "
                    f"validation (first {both[0]}): validation is not independent."
                )
        tested = {case.patient for case in self.test} - {None}
        if shared := sorted(tested & {case.patient for case in self.training}, key=str):
            found.append(
                f"{len(shared)} patients have images in training and in the test set (first "
                f"{shared[0]}): the test set is not independent."
            )
        return found


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
