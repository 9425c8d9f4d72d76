"""Write cases and their classes as an nnU-Net raw dataset."""

from __future__ import annotations

import csv
import json
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tifffile
from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json
from nnunetv2.paths import nnUNet_raw
from PIL import Image

from nnunetv2_cls.conversion.plausibility import fold_warnings, pixel_warnings, source_warnings
from nnunetv2_cls.conversion.source import BYTES, Case, Pixels, Source
from nnunetv2_cls.conversion.splits import draw_folds
from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.labels import LABELS_FILE, TEST_LABELS_FILE
from nnunetv2_cls.splits import SPLITS_FILE, Splits

_log = logging.getLogger(__name__)


def write_dataset(
    source: Source,
    dataset_id: int,
    *,
    name: str | None = None,
    overwrite: bool = False,
    progress: Callable[[Sequence[Case]], Iterable[Case]] = iter,
    warn: Callable[[str], None] = _log.warning,
) -> Path:
    """Write ``$nnUNet_raw/DatasetXXX_Name``, which appears complete or not at all.

    Parameters
    ----------
    source
        Dataset from a reader.
    dataset_id
        Id of the dataset, 1 to 999.
    name
        Name of the dataset in place of the source's.
    overwrite
        Replace a dataset of the same id and name.
    progress
        Wrapper of the cases while they are written, such as ``tqdm``.
    warn
        Called, once all is written, with each warning about the dataset.

    Returns
    -------
    Path
        Folder of the dataset.

    Raises
    ------
    ClsError
        If the dataset may not be written there, or an image is damaged.
    """
    target = _target_folder(dataset_id, name or source.name, overwrite=overwrite)
    splits = source.splits or draw_folds(source.training)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".converting-", dir=target.parent) as temporary:
            folder = Path(temporary) / target.name
            folder.mkdir()
            ending, pixels = _write_images(folder, source, progress)
            _write_tables(folder, source, ending)
            _write_json(folder / SPLITS_FILE, splits)
            if target.exists():
                target.rename(Path(temporary) / "replaced")
            folder.rename(target)
    except OSError as error:
        raise ClsError(f"{target} cannot be written: {error}.") from error
    for warning in (
        *source_warnings(source),
        *([] if source.splits else fold_warnings(source.training)),
        *pixel_warnings(pixels.types, pixels.constant),
    ):
        warn(warning)
    return target


def _target_folder(dataset_id: int, name: str, *, overwrite: bool) -> Path:
    raw = nnUNet_raw.get()
    if not raw:
        raise ClsError("nnUNet_raw is not set: export nnUNet_raw=/path/to/folder.")
    if not 1 <= dataset_id <= 999:
        raise ClsError(f"dataset id {dataset_id} is not allowed: choose 1 to 999.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ClsError(
            f"dataset name {name!r} is not allowed: choose letters, digits, _ and - with --name."
        )
    target = Path(raw) / f"Dataset{dataset_id:03d}_{name}"
    for taken in sorted(target.parent.glob(f"Dataset{dataset_id:03d}_*")):
        if taken != target:
            raise ClsError(
                f"{taken} has the id {dataset_id} already: choose another, or remove it."
            )
        if not overwrite:
            raise ClsError(f"{taken} is there already: choose another id, or give --overwrite.")
    return target


@dataclass
class _Pixels:
    """What the images of a dataset are made of."""

    types: Counter[str] = field(default_factory=Counter)
    """Number of images of each NumPy type."""
    constant: int = 0
    """Number of images that have one value everywhere."""

    def add(self, pixels: Pixels) -> None:
        self.types[str(pixels.dtype)] += 1
        self.constant += int(pixels.min() == pixels.max())


def _write_images(
    folder: Path, source: Source, progress: Callable[[Sequence[Case]], Iterable[Case]]
) -> tuple[str, _Pixels]:
    """Write images and label maps; return their file ending, and what they are made of."""
    written = _Pixels()
    for subfolder in ("imagesTr", "labelsTr", *(["imagesTs"] if source.test else [])):
        (folder / subfolder).mkdir()
    test = {case.name for case in source.test}
    for case in progress((*source.training, *source.test)):
        pixels = case.read()
        _check_bytes(case, pixels, source.channels)
        written.add(pixels)
        if case.name in test:
            save_image(folder / "imagesTs" / f"{case.name}_0000", pixels)
        else:
            rows, columns = pixels.shape[:2]
            mask = case.mask((rows, columns)) if case.mask else np.ones((rows, columns), np.uint8)
            save_image(folder / "imagesTr" / f"{case.name}_0000", pixels)
            save_image(folder / "labelsTr" / case.name, mask)
    return _unify_endings(folder), written


def _check_bytes(case: Case, pixels: Pixels, channels: Iterable[str]) -> None:
    """Refuse values above 255 in a channel of which nnU-Net accepts none."""
    if BYTES in map(str.casefold, channels) and pixels.dtype != np.uint8:
        raise ClsError(
            f"{case.origin} holds the values {pixels.min()} to {pixels.max()}: the channel "
            f"{BYTES} takes 0 to 255; give another --channel, such as rescale_to_0_1."
        )


def _unify_endings(folder: Path) -> str:
    """Turn PNG files into TIFF files if any image is one, and return the ending of all files."""
    if not any(folder.glob("images*/*.tif")):
        return ".png"
    for path in sorted(folder.glob("*/*.png")):
        with Image.open(path) as image:
            tifffile.imwrite(path.with_suffix(".tif"), np.asarray(image), compression="zlib")
        path.unlink()
    return ".tif"


def save_image(path: Path, pixels: Pixels) -> Path:
    """Write a PNG file or, for floats, which PNG cannot hold, a TIFF file.

    nnU-Net has one reader for both.

    Parameters
    ----------
    path
        File to write, without suffix.
    pixels
        Pixels as a case reads them.

    Returns
    -------
    Path
        The file.
    """
    if pixels.dtype == np.float32:
        file = path.with_name(f"{path.name}.tif")
        tifffile.imwrite(file, pixels, compression="zlib")
    else:
        file = path.with_name(f"{path.name}.png")
        Image.fromarray(pixels).save(file, compress_level=1)  # level 6 takes six times as long
    return file


def _write_tables(folder: Path, source: Source, ending: str) -> None:
    training = sorted(source.training, key=lambda case: case.name)
    with (folder / "cases.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        # with the test cases, whose intervals are by patient, too
        cases = (*training, *sorted(source.test, key=lambda case: case.name))
        writer.writerow(("case", "class", "patient"))
        writer.writerows((case.name, case.klass, case.patient or case.name) for case in cases)
    for name, cases in ((LABELS_FILE, source.training), (TEST_LABELS_FILE, source.test)):
        labels = {
            case.name: source.classes.index(case.klass)
            for case in sorted(cases, key=lambda case: case.name)
            if case.klass is not None
        }
        if labels:
            _write_json(folder / name, labels)
    generate_dataset_json(
        str(folder),
        channel_names={str(index): name for index, name in enumerate(source.channels)},
        labels=dict(source.labels),
        num_training_cases=len(training),
        file_ending=ending,
        dataset_name=folder.name,
        description=source.description,
        license="that of the source",
        converted_by="nnUNetv2_cls_convert",
        classes={name: index for index, name in enumerate(source.classes)},
        **({"image_size": source.size} if source.size else {}),
    )


def _write_json(path: Path, content: Mapping[str, int] | Splits) -> None:
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
