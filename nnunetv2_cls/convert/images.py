"""Find and read PNG, JPEG and DICOM images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 (its own documentation's name)
from numpy.typing import NDArray
from PIL import Image, ImageOps

from nnunetv2_cls.convert.source import Pixels
from nnunetv2_cls.errors import ClsError

SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")
_GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B")
_DEEP_MODES = ("I", "I;16", "I;16B")
_PIL_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def list_images(folder: Path) -> list[Path]:
    """List the images of a folder by name; hidden files (``.DS_Store``) are passed over.

    Raises
    ------
    ClsError
        If the folder is missing or empty, or holds anything else.
    """
    if not folder.is_dir():
        raise ClsError(f"{folder} is no folder: check the path.")
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    for path in paths:
        if not path.is_file() or path.suffix.lower() not in SUFFIXES:
            raise ClsError(
                f"{path} is no image: {', '.join(SUFFIXES)} are read; move it out of the folder."
            )
    if not paths:
        raise ClsError(f"{folder} holds no image: {', '.join(SUFFIXES)} are read.")
    return paths


def count_channels(path: Path) -> int:
    """Return 1 for greyscale or 3 for colour, from the file's header; alpha is not counted.

    Raises
    ------
    ClsError
        If the file is no single image.
    """
    if _is_dicom(path):
        return int(_open_dicom(path).GetNumberOfComponents())
    try:
        with Image.open(path) as image:
            return 1 if image.mode in _GREY_MODES else 3
    except _PIL_ERRORS as error:
        raise _unreadable(path) from error


def common_channels(paths: Sequence[Path]) -> int:
    """Return the number of channels that all images have.

    Raises
    ------
    ClsError
        Naming one that differs from the first.
    """
    first = count_channels(paths[0])
    for path in paths[1:]:
        if (channels := count_channels(path)) != first:
            raise ClsError(
                f"{path} has {channels} channels, {paths[0]} has {first}: all images must have the "
                "same number; --grey makes all greyscale."
            )
    return first


def read_image(path: Path, channels: int, size: int | None = None) -> Pixels:
    """Read an image as greyscale or colour, without its alpha channel.

    Parameters
    ----------
    path
        An image that :func:`count_channels` accepts.
    channels
        1 or 3.
    size
        Resize to (size, size), with anti-aliasing.

    Raises
    ------
    ClsError
        If the file is damaged, or a PNG cannot hold its values.
    """
    pixels = _read_dicom(path) if _is_dicom(path) else _read_natural(path)
    if channels == 1 and pixels.ndim == 3:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))
    if size is not None:
        image = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
    return pixels


def _is_dicom(path: Path) -> bool:
    return path.suffix.lower() == ".dcm"


def _unreadable(path: Path) -> ClsError:
    return ClsError(f"{path} cannot be read as an image: replace or remove it.")


def _read_natural(path: Path) -> Pixels:
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode not in _DEEP_MODES:
                image = image.convert("L" if image.mode in _GREY_MODES else "RGB")
            array = np.asarray(image)
    except _PIL_ERRORS as error:
        raise _unreadable(path) from error
    return _as_unsigned(array, path)


def _open_dicom(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path) from error
    channels = reader.GetNumberOfComponents()
    frames = (*reader.GetSize(), 1)[2]
    if frames != 1 or channels not in (1, 3):
        raise ClsError(
            f"{path} holds {frames} frames of {channels} channels: 1 frame of 1 or 3 channels is "
            "needed; save it as such."
        )
    return reader


def _read_dicom(path: Path) -> Pixels:
    reader = _open_dicom(path)
    try:
        array = sitk.GetArrayFromImage(reader.Execute())  # inverted already, if MONOCHROME1
    except RuntimeError as error:
        raise _unreadable(path) from error
    colour = reader.GetNumberOfComponents() == 3
    pixels = _as_unsigned(array.reshape(array.shape[-3:] if colour else array.shape[-2:]), path)
    if colour and pixels.dtype != np.uint8:
        raise ClsError(f"{path} is colour of more than 8 bits: save it with 8 bits a channel.")
    return pixels


def _as_unsigned(array: NDArray[Any], path: Path) -> Pixels:
    low, high = array.min(), array.max()
    fractions = array.dtype.kind == "f" and (array % 1).any()
    if low < 0 or high > np.iinfo(np.uint16).max or fractions:
        raise ClsError(
            f"{path} holds the values {low} to {high}: a PNG holds whole numbers from 0 to 65535; "
            "rescale the image."
        )
    if high > np.iinfo(np.uint8).max:
        return array.astype(np.uint16)
    return array.astype(np.uint8)
