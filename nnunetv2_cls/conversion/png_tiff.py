"""Read PNG, JPEG, TIFF and BMP images with all their bits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps

from nnunetv2_cls.errors import ClsError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")
_GREY_MODES = ("1", "L", "LA", "La", "F", "I")
"""Modes of Pillow without colour, beside those that begin with ``I;``."""
_ORIENTATION = 0x0112
_BITS, _PHOTOMETRIC = 258, 262
"""TIFF tags of the bits of a sample, and of the photometric interpretation."""
_SAMPLES = {
    tifffile.PHOTOMETRIC.MINISWHITE: 1,
    tifffile.PHOTOMETRIC.MINISBLACK: 1,
    tifffile.PHOTOMETRIC.RGB: 3,
}
"""Number of channels, without alpha, by the photometric interpretations that are read."""
_ERRORS = (
    *(OSError, ValueError, SyntaxError, TypeError, IndexError, KeyError, RuntimeError),
    *(Image.DecompressionBombError, tifffile.TiffFileError),
)
_UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
"""Turns an image upright, by EXIF orientation."""


def is_natural(path: Path) -> bool:
    """Return whether a file has one of these formats, by its first bytes."""
    with path.open("rb") as file:
        return file.read(4).startswith(_MAGIC)


def count_channels(path: Path) -> int:
    """Return 1 for greyscale or 3 for colour, from the header; alpha is not counted.

    Raises
    ------
    ClsError
        If the file cannot be read, or holds several images.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            _refuse_frames(image, path)
            return 1 if _is_grey(image) else 3
    except ClsError:
        raise  # ClsError is a ValueError, which _ERRORS holds
    except _ERRORS as error:
        raise unreadable(path) from error


def read_natural(path: Path) -> NDArray[Any]:
    """Read the stored values of an image, turned upright and without alpha channel.

    Returns
    -------
    ndarray
        Values of shape (rows, columns) or, in colour, (rows, columns, 3) with 8 or 16 bits.

    Raises
    ------
    ClsError
        If the file is damaged, holds several images, or has a format that is not read.
    """
    try:
        with Image.open(path, formats=_FORMATS) as file:
            _refuse_frames(file, path)
            decode = _decoder(file, path)
            if decode is None:
                image = ImageOps.exif_transpose(file)
                grey = _is_grey(image)
                pixels: NDArray[Any] = np.asarray(image.convert("L" if grey else "RGB"))
                return pixels
            orientation = file.getexif().get(_ORIENTATION, 1)
        return _UPRIGHT.get(orientation, _UPRIGHT[1])(decode(path))
    except ClsError:
        raise  # ClsError is a ValueError, which _ERRORS holds
    except _ERRORS as error:
        raise unreadable(path) from error


def unreadable(path: Path) -> ClsError:
    """Return the error for a file that is damaged, or has a format that is not read."""
    with contextlib.suppress(*_ERRORS), tifffile.TiffFile(path) as file:
        kind = file.pages[0].dtype
        if kind is not None and kind.itemsize > 4:  # undamaged, but of too many bits
            return ClsError(f"{path} is a TIFF of {kind}: save it with at most 32 bits a value.")
    return ClsError(f"{path} cannot be read as an image: replace or remove it.")


def _refuse_frames(image: Image.Image, path: Path) -> None:
    # a JPEG of a phone may hold a preview or a depth map behind the photograph
    frames = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
    if frames != 1:
        raise ClsError(
            f"{path} holds {frames} images: 1 is needed; save each as a file of its own."
        )


def _is_grey(image: Image.Image) -> bool:
    return image.mode in _GREY_MODES or image.mode.startswith("I;")


def _decoder(image: Image.Image, path: Path) -> Callable[[Path], NDArray[Any]] | None:
    """Return the decoder of an image that Pillow would cut to 8 bits; ``None`` to use Pillow."""
    if image.format == "PNG":
        with path.open("rb") as file:
            return _read_png if file.read(25)[24] > 8 else None  # bits, in the header
    if image.format == "TIFF":
        tags = image.tag_v2
        if min(tags.get(_BITS, (1,))) >= 8 and tags.get(_PHOTOMETRIC) in _SAMPLES:
            return _read_tiff
        if max(tags.get(_BITS, (1,))) > 8 or tags.get(_ORIENTATION, 1) != 1:
            raise ClsError(
                f"{path} is a TIFF of a kind that is not read: save it as greyscale or RGB of at "
                "least 8 bits."
            )
    return None


def _read_png(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = imagecodecs.png_decode(path.read_bytes())
    if array.ndim == 3:
        array = array[..., : 3 if array.shape[-1] > 2 else 1]
        array = array[..., 0] if array.shape[-1] == 1 else array
    return array


def _read_tiff(path: Path) -> NDArray[Any]:
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        array: NDArray[Any] = page.asarray()
        axes, photometric = page.axes, page.photometric
        if axes == "SYX":
            array, axes = np.moveaxis(array, 0, -1), "YXS"
        samples = array.shape[-1] - len(page.extrasamples) if axes == "YXS" else 1
        if axes not in ("YX", "YXS") or _SAMPLES[photometric] != samples:
            raise ClsError(
                f"{path} is a TIFF with the axes {axes} of {samples} samples: save it as greyscale "
                "or RGB."
            )
        if axes == "YXS":
            array = array[..., 0] if samples == 1 else array[..., :3]
        if photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            array = _inverted(array, page.bitspersample, path)
    return array


def _inverted(array: NDArray[Any], bits: int, path: Path) -> NDArray[Any]:
    if array.dtype.kind != "u":
        raise ClsError(
            f"{path} is a TIFF whose 0 is white, of {array.dtype}: save it with 0 as black."
        )
    inverted: NDArray[Any] = (2**bits - 1 - array.astype(np.int64)).astype(array.dtype)
    return inverted
