"""Convert a dataset of one of the known kinds to an nnU-Net raw dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeAlias

from nnunetv2.paths import nnUNet_preprocessed

from nnunetv2_cls.conversion.class_folders import read_class_folders
from nnunetv2_cls.conversion.kermany import read_kermany
from nnunetv2_cls.conversion.medmnist import read_medmnist
from nnunetv2_cls.conversion.patients import with_patients
from nnunetv2_cls.conversion.rsna import read_rsna
from nnunetv2_cls.conversion.source import Case, Source
from nnunetv2_cls.conversion.writer import write_dataset
from nnunetv2_cls.defaults import Kind
from nnunetv2_cls.errors import ClsError

Progress: TypeAlias = Callable[[Sequence[Case]], Iterable[Case]]
"""Wrapper of the cases while they are written, such as ``tqdm``."""


@dataclass(frozen=True)
class ConvertedDataset:
    """Raw dataset that a conversion wrote."""

    folder: Path
    training: Mapping[str | None, int]
    """Number of training cases of each class."""
    test: Mapping[str | None, int]
    """Number of test cases of each class; ``None`` stands for cases whose class is unknown."""
    warnings: tuple[str, ...]
    """What the dataset may have, but probably should not."""
    outdated: tuple[Path, ...]
    """Preprocessed folders of an earlier dataset with this id, which are to be removed."""


@dataclass(frozen=True)
class _ReaderOptions:
    """Options of :func:`convert` that not every kind of source takes."""

    size: int | None = None
    detailed: bool = False
    classes: Sequence[str] | None = None
    test: Path | None = None
    grey: bool = False

    def check(self, kind: str, allowed: Sequence[str]) -> None:
        """Refuse an option that this kind of source does not take."""
        default = _ReaderOptions()
        for option in (field.name for field in fields(self)):
            if option not in allowed and getattr(self, option) != getattr(default, option):
                raise ClsError(
                    f"{option} is no option of {kind}, which takes {', '.join(allowed)}: leave it "
                    "out."
                )


@dataclass(frozen=True)
class _Reader:
    """Reader of one kind of source."""

    options: tuple[str, ...]
    """Options that it takes."""
    read: Callable[[Path, _ReaderOptions], Source]


_READERS: Mapping[Kind, _Reader] = {
    "kermany": _Reader(("size",), lambda path, options: read_kermany(path, options.size)),
    "rsna": _Reader(
        ("detailed",), lambda path, options: read_rsna(path, detailed=options.detailed)
    ),
    "folder": _Reader(
        ("classes", "test", "grey"),
        lambda path, options: read_class_folders(
            path, classes=options.classes, test=options.test, grey=options.grey
        ),
    ),
    "npz": _Reader(("classes",), lambda path, options: read_medmnist(path, options.classes)),
}


def convert(
    kind: Kind,
    source: str | Path,
    dataset_id: int,
    *,
    name: str | None = None,
    overwrite: bool = False,
    patients: str | Path | None = None,
    channel: str | None = None,
    size: int | None = None,
    detailed: bool = False,
    classes: Sequence[str] | None = None,
    test: str | Path | None = None,
    grey: bool = False,
    progress: Progress = iter,
) -> ConvertedDataset:
    """Write an nnU-Net raw dataset with a class for every image, as ``nnUNetv2_cls_convert`` does.

    The dataset has images, label maps, ``labelsTr.json``, ``cases.csv``, and folds that keep a
    patient's images together. It appears in ``nnUNet_raw`` complete or not at all.

    Parameters
    ----------
    kind
        Kind of the source: ``kermany`` (chest X-rays), ``rsna`` (Pneumonia Detection Challenge),
        ``folder`` (a folder of images for each class) or ``npz`` (a MedMNIST archive).
    source
        Folder or file to convert.
    dataset_id
        Id of the dataset, 1 to 999.
    name
        Name of the dataset, behind ``DatasetXXX_``; ``None`` for one that follows from the source.
    overwrite
        Replace a dataset of the same id and name.
    patients
        CSV table with the columns ``file`` (or ``case``) and ``patient``, or, for ``rsna``, the
        mapping that RSNA publishes. Images of one patient stay on one side of every fold.
    channel
        Name of every channel, by which nnU-Net chooses the normalisation; ``None`` to keep the
        source's.
    size
        For ``kermany``: resize images to (size, size) pixels.
    detailed
        For ``rsna``: take the three detailed classes in place of the two targets.
    classes
        For ``folder`` and ``npz``: class names by index, of which a site may lack some.
    test
        For ``folder``: folder of the test images, with the same sub-folders.
    grey
        For ``folder``: make colour images greyscale.
    progress
        Wrapper of the cases while they are written, such as ``tqdm``.

    Returns
    -------
    ConvertedDataset
        Folder and number of cases, and warnings about what the dataset probably should not have.

    Raises
    ------
    ClsError
        If the source is incomplete or damaged, an option is not allowed, or the dataset may not be
        written.

    Examples
    --------
    >>> from nnunetv2_cls import convert
    >>> convert("folder", "images", 501, grey=True).training  # doctest: +SKIP
    {'normal': 120, 'pneumonia': 80}
    """
    if kind not in _READERS:
        raise ClsError(f"kind {kind!r} is unknown: choose one of {', '.join(_READERS)}.")
    options = _ReaderOptions(size, detailed, classes, Path(test) if test else None, grey)
    reader = _READERS[kind]
    options.check(kind, reader.options)
    cases = reader.read(Path(source), options)
    if patients:
        cases = with_patients(cases, Path(patients))
    if channel:
        cases = replace(cases, channels=(channel,) * len(cases.channels))
    warnings: list[str] = []
    folder = write_dataset(
        cases,
        dataset_id,
        name=name,
        overwrite=overwrite,
        progress=progress,
        warn=warnings.append,
    )
    return ConvertedDataset(
        folder,
        _count(cases.training, cases.classes),
        _count(cases.test, cases.classes),
        tuple(warnings),
        _preprocessed(dataset_id),
    )


def _count(cases: Iterable[Case], classes: Sequence[str]) -> dict[str | None, int]:
    """Count the cases of each class that has any, in the order of the classes."""
    counts = Counter(case.klass for case in cases)
    return {klass: counts[klass] for klass in (*classes, None) if counts[klass]}


def _preprocessed(dataset_id: int) -> tuple[Path, ...]:
    folder = nnUNet_preprocessed.get()
    return tuple(sorted(Path(folder).glob(f"Dataset{dataset_id:03d}_*"))) if folder else ()
