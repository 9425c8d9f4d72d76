"""Images as people have them, and what an nnU-Net dataset gets of them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from numpy.typing import NDArray
from PIL import Image

from nnunetv2_cls.conversion.images import (
    common_channels,
    count_channels,
    list_images,
    read_as_nnunet,
    read_image,
    stem,
)
from nnunetv2_cls.conversion.png_tiff import read_natural
from nnunetv2_cls.conversion.writer import save_image
from nnunetv2_cls.errors import ClsError

RESCALE_INTERCEPT, RESCALE_SLOPE = (0x28, 0x1052), (0x28, 0x1053)
SHAPE = (6, 9)
SHALLOW = np.arange(54, dtype=np.uint8).reshape(SHAPE) * 4
DEEP = np.arange(54, dtype=np.uint16).reshape(SHAPE) * 1100 + 3
COLOUR = np.stack([SHALLOW, SHALLOW[::-1], 255 - SHALLOW], -1)


def write_dicom(path: Path, array: NDArray[Any]) -> Path:
    """Write with ITK: implicit VR, little endian."""
    image = sitk.GetImageFromArray(array, isVector=array.ndim == 3 and array.shape[-1] == 3)
    sitk.WriteImage(image, str(path.with_suffix(".dcm")))
    return path.with_suffix(".dcm").rename(path)


def element(tag: tuple[int, int], value: bytes) -> bytes:
    """Bytes of an element of implicit VR."""
    value += b" " * (len(value) % 2)
    return struct.pack("<HHI", *tag, len(value)) + value


def change(path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    return path


def write_png16(path: Path, array: NDArray[Any], colour_type: int) -> Path:
    """Write 16 bits a channel, which Pillow cannot."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    chunks = [
        (
            b"IHDR",
            struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, colour_type, 0, 0, 0),
        ),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
    )
    return path


# --- names


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("a.dicom", "a"),
        ("A.DCM", "A"),
        ("a.Dic", "a"),
        ("chest", "chest"),
        ("1.2.840.113619.2", "1.2.840.113619.2"),
        ("IM000001", "IM000001"),
        ("scan.v2.dcm", "scan.v2"),
    ],
)
def test_dicom_of_any_name(tmp_path: Path, name: str, case: str) -> None:
    path = write_dicom(tmp_path / name, DEEP)
    assert list_images(tmp_path) == [path]
    assert stem(path) == case
    assert count_channels(path) == 1
    np.testing.assert_array_equal(read_image(path, 1), DEEP)


def test_dicom_without_preamble(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "old", DEEP)
    content = path.read_bytes()[132:]
    assert content[:4] == struct.pack("<HH", 2, 0)
    length = struct.unpack("<I", content[8:12])[0]  # of the meta header, which goes too
    path.write_bytes(content[12 + length :])
    np.testing.assert_array_equal(read_image(path, 1), DEEP)


@pytest.mark.parametrize("name", ["x.PNG", "x.dcm", "x.JPG", "x", "x.7"])
def test_content_matters_more_than_the_suffix(tmp_path: Path, name: str) -> None:
    Image.fromarray(SHALLOW).save(tmp_path / "y", "PNG")
    path = (tmp_path / "y").rename(tmp_path / name)
    assert list_images(tmp_path) == [path]
    np.testing.assert_array_equal(read_image(path, 1), SHALLOW)


@pytest.mark.parametrize("name", ["notes.txt", "README", "table.csv", "x.7"])
def test_other_files_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("not an image, but long enough to be one " * 9)
    with pytest.raises(ClsError, match=f"{name} is no image: PNG, JPEG, TIFF, BMP and DICOM"):
        list_images(tmp_path)


def test_files_of_systems_are_passed_over(tmp_path: Path) -> None:
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._x.png"):
        (tmp_path / name).write_bytes(b"x")
    Image.fromarray(SHALLOW).save(tmp_path / "x.png")
    assert list_images(tmp_path) == [tmp_path / "x.png"]


# --- bits and channels


def test_16_bit_greyscale_is_kept(tmp_path: Path) -> None:
    Image.fromarray(DEEP).save(tmp_path / "deep.png")
    opaque = np.full_like(DEEP, 65535)
    write_png16(tmp_path / "la.png", np.stack([DEEP, opaque], -1), 4)
    write_png16(tmp_path / "rgb.png", np.stack([DEEP] * 3, -1), 2)
    write_png16(tmp_path / "rgba.png", np.stack([DEEP] * 3 + [opaque], -1), 6)
    Image.fromarray(DEEP).save(tmp_path / "deep.tif")
    tifffile.imwrite(tmp_path / "rgb.tif", np.stack([DEEP] * 3, -1), photometric="rgb")
    tifffile.imwrite(tmp_path / "white.tif", 65535 - DEEP, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "big.TIFF", DEEP, byteorder=">", bigtiff=False)
    write_dicom(tmp_path / "deep.dcm", DEEP)
    for path in list_images(tmp_path):
        image = read_image(path, 1)
        assert image.dtype == np.uint16, path
        np.testing.assert_array_equal(image, DEEP, str(path))
    assert common_channels(list_images(tmp_path)) == 1


def test_deep_colour_is_refused_or_made_grey(tmp_path: Path) -> None:
    planes = np.stack([DEEP, np.zeros_like(DEEP), np.zeros_like(DEEP)], -1)
    write_png16(tmp_path / "a.png", planes, 2)
    tifffile.imwrite(tmp_path / "b.tif", planes, photometric="rgb")
    tifffile.imwrite(
        tmp_path / "c.tif", np.moveaxis(planes, -1, 0), photometric="rgb", planarconfig="separate"
    )
    for path in list_images(tmp_path):
        with pytest.raises(ClsError, match="is colour of more than 8 bits: save it with 8 bits"):
            read_image(path, 3)
        np.testing.assert_allclose(read_image(path, 1), DEEP * 0.299, atol=1)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("signed.tif", DEEP.astype(np.int32) - 30000),
        ("signed8.tif", SHALLOW.astype(np.int16).astype(np.int8)),
        ("float.tif", DEEP / np.float32(7)),
        ("large.tif", DEEP.astype(np.int32) * 3),
    ],
)
def test_values_that_no_png_holds_are_kept(tmp_path: Path, name: str, array: NDArray[Any]) -> None:
    tifffile.imwrite(tmp_path / name, array)
    image = read_image(tmp_path / name, 1)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, array)


@pytest.mark.parametrize("value", [2**24 + 1, -(2**24) - 1])
def test_whole_numbers_that_nnunet_could_not_read_exactly_are_refused(
    tmp_path: Path, value: int
) -> None:
    tifffile.imwrite(tmp_path / "x.tif", np.full(SHAPE, value, np.int32))
    with pytest.raises(ClsError, match=r"holds values up to 16777217: nnU-Net reads 32-bit floats"):
        read_image(tmp_path / "x.tif", 1)


def test_a_tiff_of_too_many_bits_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", np.ones(SHAPE))
    for look in (count_channels, lambda path: read_image(path, 1)):
        with pytest.raises(ClsError, match=r"x.tif is a TIFF of float64: save it with at most 32"):
            look(tmp_path / "x.tif")


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", np.full(SHAPE, np.nan, np.float32))
    with pytest.raises(ClsError, match=r"x.tif holds values that are no numbers"):
        read_image(tmp_path / "x.tif", 1)


@pytest.mark.parametrize(("slope", "intercept"), [("1", "-1024"), ("0.5", "3"), ("2.5", "0")])
def test_rescaled_dicom_keeps_its_values(tmp_path: Path, slope: str, intercept: str) -> None:
    path = write_dicom(tmp_path / "x.dcm", DEEP)
    change(path, element(RESCALE_INTERCEPT, b"0"), element(RESCALE_INTERCEPT, intercept.encode()))
    change(path, element(RESCALE_SLOPE, b"1"), element(RESCALE_SLOPE, slope.encode()))
    image = read_image(path, 1)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, DEEP * float(slope) + float(intercept))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_monochrome1_is_inverted(tmp_path: Path, dtype: type) -> None:
    array = (np.arange(54).reshape(SHAPE) * 4 + 5).astype(dtype)
    path = write_dicom(tmp_path / "x.dcm", array)
    change(path, b"MONOCHROME2 ", b"MONOCHROME1 ")
    image = read_image(path, 1).astype(int)
    np.testing.assert_array_equal(image - image[0, 0], -(array.astype(int) - 5))


def test_dicom_in_colour(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "c.dcm", COLOUR)
    np.testing.assert_array_equal(read_image(path, 3), COLOUR)
    assert read_image(path, 1).shape == SHAPE


def test_damaged_dicom_pixels(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "x.dcm", DEEP)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ClsError, match=r"x.dcm cannot be read as an image"):
        read_image(path, 1)


def test_dicom_with_a_modality_lut_is_refused(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "x.dcm", DEEP)
    rescale_type = element((0x28, 0x1054), b"US")
    item = element((0xFFFE, 0xE000), element((0x28, 0x3004), b"US"))
    change(path, rescale_type, rescale_type + element((0x28, 0x3000), item))
    with pytest.raises(ClsError, match=r"x.dcm has a table \(Modality LUT\)"):
        read_image(path, 1)


def test_frames_are_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(SHALLOW), Image.fromarray(SHALLOW + 1)]
    for name in ("a.png", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    for path in list_images(tmp_path):
        with pytest.raises(ClsError, match="holds 2 images: 1 is needed"):
            read_image(path, 1)
    path = write_dicom(tmp_path / "x.dcm", np.stack([DEEP] * 4))
    with pytest.raises(ClsError, match="holds 4 frames of 1 channels: 1 frame"):
        read_image(path, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_images_are_turned_as_others(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(SHALLOW).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(SHALLOW).save(tmp_path / "a.tif", exif=exif)
    Image.fromarray(SHALLOW.astype(np.uint16) + 1000).save(tmp_path / "deep.png", exif=exif)
    Image.fromarray(SHALLOW.astype(np.uint16) + 1000).save(tmp_path / "deep.tif", exif=exif)
    expected = read_natural(tmp_path / "a.png")  # turned by Pillow
    np.testing.assert_array_equal(read_natural(tmp_path / "a.tif"), expected)
    for name in ("deep.png", "deep.tif"):
        np.testing.assert_array_equal(read_natural(tmp_path / name), expected + np.uint16(1000))


def test_alpha_palettes_and_one_bit(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([COLOUR, SHALLOW])).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png", 3), COLOUR)
    Image.fromarray(COLOUR).quantize(54).save(tmp_path / "palette.png")
    np.testing.assert_allclose(read_image(tmp_path / "palette.png", 3), COLOUR, atol=8)
    Image.fromarray(SHALLOW).convert("RGB").quantize(54).save(tmp_path / "grey.png")
    assert common_channels([tmp_path / "grey.png"]) == 1
    Image.fromarray(SHALLOW > 99).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bit.png", 1), (SHALLOW > 99) * 255)


def test_colour_of_grey_content_counts_as_grey(tmp_path: Path) -> None:
    Image.fromarray(SHALLOW).save(tmp_path / "a.png")
    Image.fromarray(SHALLOW).convert("RGB").save(tmp_path / "b.jpg")
    Image.fromarray(SHALLOW).convert("RGBA").save(tmp_path / "c.png")
    assert common_channels(list_images(tmp_path)) == 1
    Image.fromarray(COLOUR).save(tmp_path / "d.png")
    with pytest.raises(ClsError, match=r"a.png has 1 channel, .*d.png has 3: .*--grey"):
        common_channels(list_images(tmp_path))
    with pytest.raises(ClsError, match=r"a.png is greyscale, the dataset is colour"):
        read_image(tmp_path / "a.png", 3)


# --- what nnU-Net gets


@pytest.mark.parametrize("channels", [1, 3])
def test_prediction_reads_what_conversion_writes(tmp_path: Path, channels: int) -> None:
    source = tmp_path / "source"
    source.mkdir()
    if channels == 3:
        Image.fromarray(COLOUR).save(source / "a.bmp")
    else:
        write_dicom(source / "a", DEEP.astype(np.int16) - 500)
        write_dicom(source / "b.dicom", DEEP)
        tifffile.imwrite(source / "c.TIF", DEEP / np.float32(7))
        Image.fromarray(SHALLOW).save(source / "d.PNG")
    for path in list_images(source):
        written = save_image(tmp_path / path.name, read_image(path, channels))
        expected, properties = NaturalImage2DIO().read_images([str(written)])
        image, own = read_as_nnunet(path, channels)
        assert image.shape == (channels, 1, *SHAPE)
        assert image.dtype == expected.dtype == np.float32
        np.testing.assert_array_equal(image, expected)
        assert own == properties
