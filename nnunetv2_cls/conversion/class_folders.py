"""One folder of images for each class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from nnunetv2_cls.conversion.images import (
    common_channels,
    count_channels,
    list_images,
    read_image,
    stem,
)
from nnunetv2_cls.conversion.source import RGB, Case, Source, case_name
from nnunetv2_cls.errors import ClsError


def read_class_folders(
    folder: Path,
    *,
    classes: Sequence[str] | None = None,
    test: Path | None = None,
    grey: bool = False,
) -> Source:
    """Find the cases; classes are the names of the sub-folders, in alphabetical order.

    Parameters
    ----------
    folder
        With one sub-folder for each class; it may be empty.
    classes
        Names of all classes, by index; then a class may lack its sub-folder, too.
    test
        Another folder with the same sub-folders.
    grey
        Make colour images greyscale.

    Raises
    ------
    ClsError
        If a folder is missing, holds something else, or no image at all, an image is unreadable,
        or greyscale and colour are mixed.
    """
    training_images = _list_classes(folder, classes)
    test_images = _list_classes(test, classes) if test else {}
    if test and set(test_images) != set(training_images):
        raise ClsError(
            f"{test} has the classes {', '.join(test_images)}; {folder} has "
            f"{', '.join(training_images)}: both need the same sub-folders."
        )
    paths = [p for images in (training_images, test_images) for ps in images.values() for p in ps]
    if not any(training_images.values()):
        raise ClsError(f"{folder} holds no image in any of its sub-folders.")
    if grey:
        for path in paths:
            count_channels(path)  # is it an image?
    channels = 1 if grey or common_channels(paths) == 1 else 3

    def make(path: Path, klass: str, *prefix: str) -> Case:
        name = case_name(*prefix, klass, stem(path))
        return Case(name, None, klass, path, partial(read_image, path, channels))

    return Source(
        name=case_name(folder.resolve().name),
        description=f"Images of the classes {', '.join(training_images)}",
        classes=tuple(training_images),
        training=tuple(make(p, klass) for klass, ps in training_images.items() for p in ps),
        test=tuple(make(p, klass, "test") for klass, ps in test_images.items() for p in ps),
        channels=("grey",) if channels == 1 else RGB,
    )


def _list_classes(folder: Path, classes: Sequence[str] | None) -> dict[str, list[Path]]:
    """List the images of every class, in the order of the classes."""
    if not folder.is_dir():
        raise ClsError(f"{folder} is no folder: check the path.")
    found = {
        path.name: list_images(path, empty=True)
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".")
    }
    if not found:
        raise ClsError(f"{folder} has no sub-folders: put the images of each class into one.")
    if classes is None:
        return found
    if unknown := [name for name in found if name not in classes]:
        raise ClsError(
            f"{folder} has the sub-folder {', '.join(unknown)}; --classes has "
            f"{', '.join(classes)}: name every class as its sub-folder, or move it away."
        )
    return {name: found.get(name, []) for name in classes}
