"""Write cases and their classes as an nnU-Net raw dataset."""

from __future__ import annotations

import csv
import json
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tifffile
from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json
from nnunetv2.paths import nnUNet_raw
from PIL import Image

from nnunetv2_cls.conversion.source import BYTES, Case, Pixels, Source, Splits
from nnunetv2_cls.conversion.splits import draw_folds, fold_warnings
from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.labels import LABELS_FILE, TEST_LABELS_FILE

_log = logging.getLogger(__name__)


_ONE_VALUE = "of one value"


def write_dataset(
    source: Source,
    dataset_id: int,
    *,
    name: str | None = None,
    overwrite: bool = False,
    progress: Callable[[Sequence[Case]], Iterable[Case]] = iter,
    warn: Callable[[str], None] = _log.warning,
) -> Path:
    """Write ``$nnUNet_raw/DatasetXXX_Name``; it appears when it is complete, or not at all.

    Parameters
    ----------
    source
        What a reader found.
    dataset_id
        1 to 999.
    name
        Instead of the source's own.
    overwrite
        Replace a dataset of the same id and name.
    progress
        Wraps the cases while they are written, such as ``tqdm``.
    warn
        Told, when all is written, what is allowed but may not be meant.

    Returns
    -------
    Its folder.

    Raises
    ------
    ClsError
        If it may not be written there, or an image turns out to be damaged.
    """
    target = _target_folder(dataset_id, name or source.name, overwrite=overwrite)
    splits = source.splits or draw_folds(source.training)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".converting-", dir=target.parent) as temporary:
            folder = Path(temporary) / target.name
            folder.mkdir()
            ending, depths = _write_images(folder, source, progress)
            _write_tables(folder, source, ending)
            _write_json(folder / "splits_final.json", splits)
            if target.exists():
                target.rename(Path(temporary) / "replaced")
            folder.rename(target)
    except OSError as error:
        raise ClsError(f"{target} cannot be written: {error}.") from error
    drawn = [] if source.splits else fold_warnings(source.training)
    for warning in (*source.warnings(), *drawn, *_depth_warnings(depths)):
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


def _write_images(
    folder: Path, source: Source, progress: Callable[[Sequence[Case]], Iterable[Case]]
) -> tuple[str, Counter[str]]:
    """Write images and label maps; return their file ending, and how many have which type."""
    depths: Counter[str] = Counter()
    for subfolder in ("imagesTr", "labelsTr", *(["imagesTs"] if source.test else [])):
        (folder / subfolder).mkdir()
    test = {case.name for case in source.test}
    for case in progress((*source.training, *source.test)):
        pixels = case.read()
        if BYTES in map(str.casefold, source.channels) and pixels.dtype != np.uint8:
            raise ClsError(
                f"{case.origin} holds the values {pixels.min()} to {pixels.max()}: the channel "
                f"{BYTES} takes 0 to 255; give another --channel, such as rescale_to_0_1."
            )
        depths[str(pixels.dtype)] += 1
        depths[_ONE_VALUE] += int(pixels.min() == pixels.max())
        subset = "Ts" if case.name in test else "Tr"
        save_image(folder / f"images{subset}" / f"{case.name}_0000", pixels)
        if subset == "Tr":
            rows, columns = pixels.shape[:2]
            mask = case.mask((rows, columns)) if case.mask else np.ones((rows, columns), np.uint8)
            save_image(folder / "labelsTr" / case.name, mask)
    if not any(folder.glob("images*/*.tif")):
        return ".png", depths
    for path in sorted(folder.glob("*/*.png")):  # one dataset has one ending
        with Image.open(path) as image:
            tifffile.imwrite(path.with_suffix(".tif"), np.asarray(image), compression="zlib")
        path.unlink()
    return ".tif", depths


def _depth_warnings(depths: Mapping[str, int]) -> list[str]:
    found = []
    types = {name: count for name, count in depths.items() if name != _ONE_VALUE}
    if depths[_ONE_VALUE]:
        found.append(f"{depths[_ONE_VALUE]} images have one value everywhere: they show nothing.")
    if depths["float32"]:
        found.append(
            f"{depths['float32']} images have negative values, fractions or values above 65535: "
            "the images are TIFF files of 32-bit floats, of about 7 digits."
        )
    if len(types) > 1:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(types.items()))
        found.append(
            f"the images differ in type ({counts}): nnU-Net's z-score of each image makes them "
            "comparable, other normalisations do not."
        )
    return found


def save_image(path: Path, pixels: Pixels) -> Path:
    """Write a PNG or, of floats, which no PNG holds, a TIFF; nnU-Net has one reader for both.

    Parameters
    ----------
    path
        Without suffix.
    pixels
        As a case is read.

    Returns
    -------
    The file.
    """
    if pixels.dtype == np.float32:
        file = path.with_name(f"{path.name}.tif")
        tifffile.imwrite(file, pixels, compression="zlib")
    else:
        file = path.with_name(f"{path.name}.png")
        Image.fromarray(pixels).save(file, compress_level=1)  # 6 takes six times as long
    return file


def _write_tables(folder: Path, source: Source, ending: str) -> None:
    training = sorted(source.training, key=lambda case: case.name)
    with (folder / "cases.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        # test cases too: their intervals are by patient
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
