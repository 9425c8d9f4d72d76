"""Real DICOM files: those that pydicom ships, and those of pydicom-data where it is installed.

Each is read with the values that pydicom reads, or refused in a line that names it.
``python -m pytest -s tests/unit/test_real_dicom.py`` prints how many of each there are.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nnunetv2_cls.conversion.images import count_channels, read_image
from nnunetv2_cls.errors import ClsError

pydicom = pytest.importorskip("pydicom")

LOSSY = {f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 81, 91)}
"""Decoders may round differently."""


def folder_of(package: str, *parts: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0], *parts)


def with_pixels(folder: Path) -> Iterator[tuple[Path, Any]]:
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        try:
            dataset = pydicom.dcmread(path, force=True)
        except Exception:  # noqa: BLE001, S112 - files that are broken on purpose
            continue
        if "Rows" in dataset:
            yield path, dataset


def reference(dataset: Any) -> NDArray[Any]:
    """What pydicom reads, black being low, and colour having 8 bits."""
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    stored = dataset.pixel_array  # YBR becomes RGB
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        colour = pydicom.pixels.apply_color_lut(stored, dataset)
        return colour >> 8 if colour.max() > 255 else colour
    if dataset.SamplesPerPixel == 3:
        return stored
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        stored = 2**dataset.BitsStored - 1 - stored.astype(int)
    if dataset.BitsAllocated == 1:
        stored = stored * 255
    return pydicom.pixels.apply_modality_lut(stored, dataset)


def check(path: Path, dataset: Any) -> str:
    """Return what came of a file."""
    refusal = ""
    try:
        image = read_image(path, count_channels(path))
    except ClsError as error:
        refusal = str(error)
    if refusal:
        assert refusal.startswith(str(path))
        return "refused"
    try:
        expected = reference(dataset)
    except (RuntimeError, NotImplementedError):  # no decoder is installed, or it does not know it
        return "read, without anything to compare with"
    lossy = str(dataset.file_meta.TransferSyntaxUID) in LOSSY
    if image.ndim == 2 and expected.ndim == 3:  # colour of grey content would count as grey
        expected = expected[..., 0]
    np.testing.assert_allclose(
        image, expected, rtol=1e-6, atol=2 if lossy else 0, err_msg=str(path)
    )
    return "read right"


@pytest.mark.parametrize(
    ("package", "parts", "least"),
    [("pydicom", ("data", "test_files"), 60), ("data_store", ("data",), 30)],
)
def test_real_dicom_is_read_right_or_refused(
    package: str, parts: tuple[str, ...], least: int
) -> None:
    folder = folder_of(package, *parts)
    if folder is None or not folder.is_dir():
        pytest.skip("pydicom-data is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counts = Counter(check(path, dataset) for path, dataset in with_pixels(folder))
    print(f"{package}: {dict(counts)}")  # noqa: T201
    assert counts["read right"] >= least
    assert counts["read, without anything to compare with"] <= 30
