"""Read MedMNIST archives: ``train_images``, ``train_labels``, the same for ``val`` and ``test``."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunetv2_cls.conversion.source import RGB, Case, Pixels, Source, case_name
from nnunetv2_cls.errors import ClsError

_NAMES = tuple(f"{s}_{what}" for s in ("train", "val", "test") for what in ("images", "labels"))


def read_medmnist(file: Path, classes: Sequence[str] | None = None) -> Source:
    """Find the cases of an archive, whose training and validation set are the only fold.

    Parameters
    ----------
    file
        The ``.npz`` file. Images have the shape (N, rows, columns) or (N, rows, columns, 3), labels
        the shape (N, 1) or (N,). ``test`` may be absent.
    classes
        Class names by label; there may be more than labels, if a site lacks a class. ``None`` for
        class_0, class_1, ...

    Raises
    ------
    ClsError
        If an array is missing or has another form, or there are fewer names than labels.
    """
    arrays = _load(file)
    splits = [split for split in ("train", "val", "test") if f"{split}_images" in arrays]
    channels = {_check(file, arrays, split) for split in splits}
    if len(channels) > 1:
        raise ClsError(f"{file} mixes greyscale and colour: all images must be of one kind.")
    names = _class_names(file, arrays, splits, classes)
    cases = {split: _cases(file, arrays, split, names) for split in splits}
    fold = {split: sorted(case.name for case in cases[split]) for split in ("train", "val")}
    return Source(
        name=case_name(file.stem),
        description="MedMNIST images, with the archive's own split",
        classes=names,
        training=(*cases["train"], *cases["val"]),
        test=tuple(cases.get("test", ())),
        channels=("grey",) if channels == {1} else RGB,
        splits=[fold],
    )


def _class_names(
    file: Path,
    arrays: Mapping[str, NDArray[Any]],
    splits: Sequence[str],
    classes: Sequence[str] | None,
) -> tuple[str, ...]:
    """Return the class names by label, made up if none are given."""
    count = 1 + max(int(arrays[f"{split}_labels"].max()) for split in splits)
    names = tuple(classes or (f"class_{index}" for index in range(count)))
    if len(names) < count:
        raise ClsError(
            f"--classes gives {len(names)} names ({', '.join(names)}), but the labels of {file} "
            f"are 0 to {count - 1}: give {count}."
        )
    return names


def _load(file: Path) -> dict[str, NDArray[Any]]:
    """Load the arrays of an archive, of which those of the test set may be absent."""
    if not zipfile.is_zipfile(file):
        raise ClsError(f"{file} is no .npz archive: check the path.")
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in _NAMES if name in archive}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ClsError(f"{file} cannot be read as an .npz archive: {error}.") from error
    without_test = not any(name.startswith("test") for name in arrays)
    for name in _NAMES[: 4 if without_test else 6]:
        if name not in arrays:
            raise ClsError(
                f"{file} lacks the array {name}: MedMNIST's {', '.join(_NAMES[:4])} are needed, "
                f"and {', '.join(_NAMES[4:])} if there is a test set."
            )
    return arrays


def _check(file: Path, arrays: Mapping[str, NDArray[Any]], split: str) -> int:
    """Check the arrays of a split, and return the number of channels."""
    images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    grey, colour = images.ndim == 3, images.ndim == 4 and images.shape[-1] == 3
    if images.dtype != np.uint8 or not (grey or colour):
        raise ClsError(
            f"{file}: {split}_images is {images.dtype} of shape {images.shape}; allowed is uint8 "
            "of shape (N, rows, columns) or (N, rows, columns, 3)."
        )
    _check_labels(f"{file}: {split}_labels", labels, len(images))
    return 1 if grey else 3


def _check_labels(where: str, labels: NDArray[Any], count: int) -> None:
    """Refuse labels other than one whole number for each of ``count`` images."""
    if labels.ndim == 2 and labels.shape[1] > 1 and len(labels) == count:
        raise ClsError(
            f"{where} has {labels.shape[1]} numbers for each image: several labels "
            "of one image (multi-label) are not supported; one whole number is needed."
        )
    if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "iu":
        raise ClsError(
            f"{where} is {labels.dtype} of shape {labels.shape}; needed is one "
            f"whole number for each of the {count} images."
        )
    if labels.size == 0 or labels.min() < 0:
        raise ClsError(f"{where} is empty or has negative numbers; labels are 0, 1, ...")


def _cases(
    file: Path, arrays: Mapping[str, NDArray[Any]], split: str, classes: Sequence[str]
) -> list[Case]:
    images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].ravel()
    names = [case_name(f"{split}_{index:06d}") for index in range(len(images))]
    return [
        Case(name, None, classes[label], file / name, partial(_pick, images, index))
        for index, (name, label) in enumerate(zip(names, labels, strict=True))
    ]


def _pick(images: NDArray[np.uint8], index: int) -> Pixels:
    pixels: Pixels = images[index]
    return pixels
