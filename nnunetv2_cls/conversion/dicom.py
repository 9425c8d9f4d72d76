"""Read DICOM files with the GDCM of ITK, the library of nnU-Net's own readers."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 (its own documentation's name)
from numpy.typing import NDArray

from nnunetv2_cls.errors import ClsError

SUFFIXES = (".dcm", ".dicom", ".dic")
_PREAMBLE = 128
"""Bytes before the letters ``DICM``."""
_MODALITY_LUT = (b"\x28\x00\x00\x30", b"\x00\x28\x30\x00")
_PIXEL_DATA = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")
"""Bytes of the tags (0028,3000) and (7FE0,0010), little and big endian."""
_PALETTES = ("0028|1201", "0028|1202", "0028|1203")
"""Tags of the red, green and blue entries of a palette."""
_KEPT = {sitk.sitkVectorUInt8, sitk.sitkUInt8}
"""Pixel types in which GDCM reads a palette without change."""


def is_dicom(path: Path) -> bool:
    """Return whether a file is DICOM, by its content; an old file without preamble is tried."""
    with path.open("rb") as file:
        head = file.read(_PREAMBLE + 4)
    if head[_PREAMBLE:] == b"DICM":
        return True
    # a UID as a name ends in a number; any other suffix would make GDCM try every text file
    suffix = path.suffix.lower()
    if suffix and suffix not in SUFFIXES and not suffix[1:].isdigit():
        return False
    return bool(head) and _opened(path) is not None


def open_dicom(path: Path) -> sitk.ImageFileReader:
    """Return a reader of a file whose header promises values that `read_dicom` reads correctly.

    Raises
    ------
    ClsError
        If the file holds no image, several frames, or values that would be read incorrectly.
    """
    reader = _opened(path)
    if reader is None:
        raise ClsError(
            f"{path} cannot be read as an image: it is DICOM without pixels, damaged, or of a kind "
            "that GDCM does not read; remove it, or export it again."
        )
    _check_frames(reader, path)
    _check_bits(reader, path)
    if _has_modality_lut(path):
        raise ClsError(
            f"{path} has a table (Modality LUT) from which its values are looked up, which is not "
            "read here: export it with rescale slope and intercept instead."
        )
    return reader


def _check_frames(reader: sitk.ImageFileReader, path: Path) -> None:
    channels = reader.GetNumberOfComponents()
    frames = (*reader.GetSize(), 1)[2]
    if frames != 1 or channels not in (1, 3):
        raise ClsError(
            f"{path} holds {frames} frames of {channels} channels: 1 frame of 1 or 3 channels is "
            "needed; save the frames that matter as files of their own, or the volume as NIfTI in "
            "a dataset for 3d_fullres."
        )


def _check_bits(reader: sitk.ImageFileReader, path: Path) -> None:
    bits = _number(reader, "0028|0100")
    colour = reader.GetNumberOfComponents() == 3
    if colour and (bits > 8 or not _palette_has_8_bits(reader)):
        raise ClsError(f"{path} is colour of more than 8 bits: save it with 8 bits a channel.")
    if bits > 16:
        raise ClsError(f"{path} is greyscale of more than 16 bits: save it with 16 bits.")


def read_dicom(path: Path) -> NDArray[Any]:
    """Read the rescaled values of a file; MONOCHROME1 is inverted, palettes and YBR become RGB.

    Windows (VOI LUT) and overlays are not applied.

    Returns
    -------
    ndarray
        Values of shape (rows, columns) or, in colour, (rows, columns, 3).

    Raises
    ------
    ClsError
        As `open_dicom`, or if the pixels are damaged.
    """
    reader = open_dicom(path)
    try:
        array = sitk.GetArrayFromImage(reader.Execute())  # GDCM has inverted MONOCHROME1
    except RuntimeError as error:
        raise ClsError(f"{path} cannot be read as an image: replace or remove it.") from error
    colour = reader.GetNumberOfComponents() == 3
    pixels: NDArray[Any] = array.reshape(array.shape[-3:] if colour else array.shape[-2:])
    return pixels


def _opened(path: Path) -> sitk.ImageFileReader | None:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    return reader


def _number(reader: sitk.ImageFileReader, key: str) -> int:
    return int(reader.GetMetaData(key)) if reader.HasMetaDataKey(key) else 0


def _palette_has_8_bits(reader: sitk.ImageFileReader) -> bool:
    """Return whether a palette of 16 bits holds 8: GDCM keeps the high bytes only."""
    if reader.GetPixelID() not in _KEPT:
        return False
    for key in _PALETTES:
        if reader.HasMetaDataKey(key) and _number_of_bits(reader, key) == 16:
            entries = np.frombuffer(base64.b64decode(reader.GetMetaData(key)), "<u2")
            low, high = entries & 255, entries >> 8
            if low.any() and (low != high).any():
                return False
    return True


def _number_of_bits(reader: sitk.ImageFileReader, key: str) -> int:
    """Return the bits of a palette's entry, which is the third number of its descriptor."""
    descriptor = key.replace("|12", "|11")
    return int(reader.GetMetaData(descriptor).split("\\")[2])


def _has_modality_lut(path: Path) -> bool:
    """Search the header's bytes for the tag of the table: ITK does not return sequences."""
    content = path.read_bytes()
    start = min((at for tag in _PIXEL_DATA if (at := content.find(tag)) >= 0), default=None)
    return any(content.find(tag, 0, start) >= 0 for tag in _MODALITY_LUT)
