"""One folder of images for each class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from nnunetv2_cls.convert.images import (
    common_channels,
    count_channels,
    list_images,
    read_image,
    stem,
)
from nnunetv2_cls.convert.source import RGB, Case, Source, case_name
from nnunetv2_cls.convert.tables import read_table
from nnunetv2_cls.errors import ClsError


def read_class_folders(
    folder: Path, *, patients: Path | None = None, test: Path | None = None, grey: bool = False
) -> Source:
    """Find the cases; classes are the names of the sub-folders, in alphabetical order.

    Parameters
    ----------
    folder
        With one sub-folder for each class.
    patients
        CSV table with columns ``file`` (``name.png``, or ``class/name.png`` where a name is in
        several classes) and ``patient``. Without it, each training image is a patient of its own.
    test
        Another folder with the same sub-folders.
    grey
        Make colour images greyscale.

    Raises
    ------
    ClsError
        If a folder is missing or empty, an image is unreadable or has no patient, or greyscale
        and colour are mixed.
    """
    training_images = _list_classes(folder)
    test_images = _list_classes(test) if test else {}
    if test and set(test_images) != set(training_images):
        raise ClsError(
            f"{test} has the classes {', '.join(test_images)}; {folder} has "
            f"{', '.join(training_images)}: both need the same sub-folders."
        )
    paths = [p for images in (training_images, test_images) for ps in images.values() for p in ps]
    if grey:
        for path in paths:
            count_channels(path)  # is it an image?
    channels = 1 if grey or common_channels(paths) == 1 else 3
    patient_of = _patients(patients, [p for ps in training_images.values() for p in ps])

    def make(path: Path, klass: str, *prefix: str) -> Case:
        name = case_name(*prefix, klass, stem(path))
        read = partial(read_image, path, channels)
        return Case(name, name if prefix else patient_of(path) or name, klass, path, read)

    return Source(
        name=case_name(folder.resolve().name),
        description=f"Images of the classes {', '.join(training_images)}",
        classes=tuple(training_images),
        training=tuple(make(p, klass) for klass, ps in training_images.items() for p in ps),
        test=tuple(make(p, klass, "test") for klass, ps in test_images.items() for p in ps),
        channels=("grey",) if channels == 1 else RGB,
    )


def _list_classes(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise ClsError(f"{folder} is no folder: check the path.")
    classes = sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if not classes:
        raise ClsError(f"{folder} has no sub-folders: put the images of each class into one.")
    return {path.name: list_images(path) for path in classes}


def _patients(table: Path | None, images: list[Path]) -> Callable[[Path], str | None]:
    """Return what finds the patient of an image; without a table, None."""
    if table is None:
        return lambda _: None
    patients: dict[str, str] = {}
    for row in read_table(table, ("file", "patient")):
        file = row["file"].replace("\\", "/")
        if not row["patient"] or patients.setdefault(file, row["patient"]) != row["patient"]:
            raise ClsError(f"{table}: {file} has no patient, or several; one is needed.")
    names = Counter(path.name for path in images)
    found = {}
    for path in images:
        patient = patients.get(f"{path.parent.name}/{path.name}")
        if patient is None and names[path.name] == 1:
            patient = patients.get(path.name)
        if patient is None:
            raise ClsError(
                f"{table} has no row for {path.parent.name}/{path.name}: name it so in the column "
                "file, or without its folder if no other image has that name."
            )
        found[path] = patient
    return found.get
