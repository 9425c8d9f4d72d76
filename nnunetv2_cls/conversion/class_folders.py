"""Read one folder of images for each class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
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
    """Find the cases; the classes are the names of the sub-folders, in alphabetical order.

    Parameters
    ----------
    folder
        Folder with a sub-folder for each class, which may be empty.
    classes
        Class names by index, of which some may have no sub-folder; ``None`` to take the names of
        the sub-folders.
    test
        Folder of the test images, with the same sub-folders.
    grey
        Make colour images greyscale.

    Raises
    ------
    ClsError
        If a folder is missing, or holds another file or no image at all, if an image cannot be
        read, or if greyscale and colour are mixed.
    """
    images = _list_classes(folder, classes)
    test_images = _list_classes(test, classes) if test else {}
    if test and set(test_images) != set(images):
        raise ClsError(
            f"{test} has the classes {', '.join(test_images)}; {folder} has "
            f"{', '.join(images)}: both need the same sub-folders."
        )
    if not any(images.values()):
        raise ClsError(f"{folder} holds no image in any of its sub-folders.")
    channels = _channels([*chain(*images.values(), *test_images.values())], grey=grey)
    return Source(
        name=case_name(folder.resolve().name),
        description=f"Images of the classes {', '.join(images)}",
        classes=tuple(images),
        training=tuple(_cases(images, channels)),
        test=tuple(_cases(test_images, channels, "test")),
        channels=("grey",) if channels == 1 else RGB,
    )


def _channels(paths: Sequence[Path], *, grey: bool) -> int:
    """Return the number of channels of all images; refuse a file that is no image."""
    if not grey:
        return common_channels(paths)
    for path in paths:
        count_channels(path)
    return 1


def _cases(images: Mapping[str, Sequence[Path]], channels: int, *prefix: str) -> Iterator[Case]:
    """Name the images of each class as cases."""
    for klass, paths in images.items():
        for path in paths:
            name = case_name(*prefix, klass, stem(path))
            yield Case(name, None, klass, path, partial(read_image, path, channels))


def _list_classes(folder: Path, classes: Sequence[str] | None) -> dict[str, list[Path]]:
    """List the images of every class, in the order of the classes."""
    images = _list_subfolders(folder)
    if classes is None:
        return images
    if unknown := [name for name in images if name not in classes]:
        raise ClsError(
            f"{folder} has the sub-folder {', '.join(unknown)}; --classes has "
            f"{', '.join(classes)}: name every class as its sub-folder, or move it away."
        )
    return {name: images.get(name, []) for name in classes}


def _list_subfolders(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise ClsError(f"{folder} is no folder: check the path.")
    images = {
        path.name: list_images(path, empty=True)
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".")
    }
    if not images:
        raise ClsError(f"{folder} has no sub-folders: put the images of each class into one.")
    return images
