"""Find and read images: PNG, JPEG, TIFF, BMP and DICOM, distinguished by content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnunetv2_cls.conversion import dicom, png_tiff
from nnunetv2_cls.conversion.source import Pixels
from nnunetv2_cls.errors import ClsError

SUFFIXES = (*png_tiff.SUFFIXES, *dicom.SUFFIXES)
_READ = "PNG, JPEG, TIFF, BMP and DICOM are read, whatever their names"
_OF_SYSTEMS = ("thumbs.db", "desktop.ini")
"""Files that Windows adds to a folder."""
_WEIGHTS = np.array((19595, 38470, 7471), np.int64)
"""Weights of red, green and blue in grey, times 65536, as Pillow has them."""
_LARGEST_WHOLE = 2**24
"""Largest number up to which a 32-bit float holds every whole number."""


def list_images(folder: Path, *, empty: bool = False) -> list[Path]:
    """List the images of a folder by name, without hidden files such as ``.DS_Store``.

    Raises
    ------
    ClsError
        If the folder is missing, holds any other file, or is empty and ``empty`` is not set.
    """
    if not folder.is_dir():
        raise ClsError(f"{folder} is no folder: check the path.")
    paths = sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.name.lower() not in _OF_SYSTEMS
    )
    for path in paths:
        if not is_image(path):
            raise ClsError(f"{path} is no image: {_READ}; move it out of the folder.")
    if not paths and not empty:
        raise ClsError(f"{folder} holds no image: {_READ}.")
    return paths


def is_image(path: Path) -> bool:
    """Return whether a file is an image of a format that is read, or is named like one."""
    if not path.is_file():
        return False
    return path.suffix.lower() in SUFFIXES or png_tiff.is_natural(path) or dicom.is_dicom(path)


def stem(path: Path) -> str:
    """Return a file's name without suffix; ``1.2.840.7``, a UID, has none."""
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def count_channels(path: Path) -> int:
    """Return 1 for greyscale or 3 for colour, from the file's header; alpha is not counted.

    Raises
    ------
    ClsError
        If the file is not exactly one image.
    """
    if _is_dicom(path):
        return int(dicom.open_dicom(path).GetNumberOfComponents())
    return png_tiff.count_channels(path)


def common_channels(paths: Sequence[Path]) -> int:
    """Return the number of channels of all images: 1 if even those in colour hold only grey.

    Raises
    ------
    ClsError
        Naming two images, one of which is in colour while the other cannot be.
    """
    counts = {path: count_channels(path) for path in paths}
    coloured = next((p for p, n in counts.items() if n == 3 and _values(p).ndim == 3), None)
    if coloured is None:
        return 1
    grey = next((path for path, count in counts.items() if count == 1), None)
    if grey is not None:
        raise ClsError(
            f"{grey} has 1 channel, {coloured} has 3: all images must have the same number; "
            "--grey makes all greyscale."
        )
    return 3


def read_image(path: Path, channels: int, size: int | None = None) -> Pixels:
    """Read an image as greyscale or colour, without its alpha channel and with all its bits.

    Parameters
    ----------
    path
        Image file of any name: the format is recognised by content.
    channels
        Channels of the dataset, 1 or 3. For 1, colour becomes grey.
    size
        Resize to (size, size) pixels, with anti-aliasing; ``None`` to keep the size.

    Returns
    -------
    ndarray
        Pixels of shape (rows, columns), or (rows, columns, 3) for 3 channels. Whole numbers without
        sign have 8 bits or, if they need them, 16; all other values are 32-bit floats.

    Raises
    ------
    ClsError
        If the file is damaged, holds several images, or is greyscale or colour of more than 8 bits
        though the dataset has 3 channels.
    """
    values = _values(path) if channels == 1 else _stored(path)
    if channels == 3:
        if values.ndim != 3:
            raise ClsError(f"{path} is greyscale, the dataset is colour: give a colour image.")
        if values.dtype != np.uint8:
            raise ClsError(f"{path} is colour of more than 8 bits: save it with 8 bits a channel.")
    elif values.ndim == 3:
        if values.dtype.kind != "u":
            raise ClsError(f"{path} is colour of {values.dtype}: save it with 8 bits a channel.")
        values = _to_grey(values)
    pixels = _smallest(values, path)
    if size is not None:
        image = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
    return pixels


def read_as_nnunet(
    path: Path, channels: int, size: int | None = None
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Read an image as nnU-Net's reader would read the file that conversion writes of it.

    Parameters
    ----------
    path, channels, size
        As in `read_image`.

    Returns
    -------
    tuple
        Values of shape (channels, 1, rows, columns), and the properties that nnU-Net's preprocessor
        needs: the spacing in mm, which such images do not have.

    Raises
    ------
    ClsError
        As `read_image`.
    """
    pixels = read_image(path, channels, size)
    planes = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    return planes[:, None].astype(np.float32), {"spacing": (999, 1, 1)}


def _is_dicom(path: Path) -> bool:
    try:
        return dicom.is_dicom(path)
    except OSError as error:
        raise png_tiff.unreadable(path) from error


def _stored(path: Path) -> NDArray[Any]:
    """Read the stored values, of shape (rows, columns) or (rows, columns, 3)."""
    return dicom.read_dicom(path) if _is_dicom(path) else png_tiff.read_natural(path)


def _values(path: Path) -> NDArray[Any]:
    """Read the values of an image, in which three equal channels count as one."""
    values = _stored(path)
    if values.ndim == 3 and (values == values[..., :1]).all():
        return values[..., 0]
    return values


def _to_grey(colour: NDArray[Any]) -> NDArray[Any]:
    grey: NDArray[Any] = (colour.astype(np.int64) @ _WEIGHTS + 0x8000) >> 16
    return grey


def _smallest(values: NDArray[Any], path: Path) -> Pixels:
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ClsError(f"{path} holds values that are no numbers: replace or remove it.")
    fractions = values.dtype.kind == "f" and (values % 1).any()
    if low < 0 or high > np.iinfo(np.uint16).max or fractions:
        if values.dtype.kind in "iu" and max(-int(low), int(high)) > _LARGEST_WHOLE:
            raise ClsError(
                f"{path} holds values up to {max(-int(low), int(high))}: nnU-Net reads 32-bit "
                f"floats, which count exactly to {_LARGEST_WHOLE}; rescale the image."
            )
        return values.astype(np.float32)
    if high > np.iinfo(np.uint8).max:
        return values.astype(np.uint16)
    return values.astype(np.uint8)
