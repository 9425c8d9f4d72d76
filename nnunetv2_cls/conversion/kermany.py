"""Read the Kermany chest X-rays, ``chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}``.

They may come from Kaggle, or from any version of the publication (doi:10.17632/rscbjbr9sj).
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from nnunetv2_cls.conversion.images import count_channels, list_images, read_image, stem
from nnunetv2_cls.conversion.source import Case, Source, case_name
from nnunetv2_cls.errors import ClsError

CLASSES = {"NORMAL": "normal", "PNEUMONIA": "pneumonia"}
"""Class name by sub-folder."""
_EARLIER = re.compile(r"(person\d+)_|(NORMAL\d*-)?IM-(\d+)(?!\d)", re.IGNORECASE)
"""File names on Kaggle and in the earlier versions of the publication."""
_THIRD_VERSION = re.compile(r"(?:NORMAL|BACTERIA|VIRUS|PNEUMONIA)-(\d+)-\d+", re.IGNORECASE)
"""File names in the third version."""
_ROOTS = ("", "chest_xray", "CellData/chest_xray", "ZhangLabData/CellData/chest_xray")
"""Places of the folder ``train``'s parent below the folder that a user gives."""


def read_kermany(folder: Path, size: int | None = None) -> Source:
    """Find the cases: those of train and val for training, those of test for testing.

    Parameters
    ----------
    folder
        Folder ``chest_xray`` or its parent. ``val`` may be absent, as in the publication.
    size
        Resize images to (size, size) pixels; ``None`` to keep their size.

    Raises
    ------
    ClsError
        If a folder or image is missing or unreadable.
    """
    if size is not None and size < 1:
        raise ClsError(f"--size {size}: give the number of pixels a side, such as 224.")
    root = _find_root(folder)
    splits = ("train", "val") if (root / "val").is_dir() else ("train",)
    return Source(
        name="KermanyCXR",
        description="Chest X-rays of children (Kermany 2018, doi:10.17632/rscbjbr9sj)",
        classes=tuple(CLASSES.values()),
        training=tuple(case for split in splits for case in _read_split(root, split, size)),
        test=tuple(_read_split(root, "test", size)),
        size=size,
    )


def patient_of(stem: str, split: str) -> str | None:
    """Return the patient that a published file name gives; ``None`` for any other name.

    In the third version, ``BACTERIA-40699-0001``, a number means one patient in the whole dataset.
    In earlier versions and on Kaggle, ``person1_virus_6`` or ``NORMAL2-IM-0115-0001``, numbers
    start again in ``test``, and a patient may be in both ``train`` and ``val``.
    """
    if third := _THIRD_VERSION.match(stem):
        return f"patient{int(third[1])}"
    earlier = _EARLIER.match(stem)
    if earlier is None:
        return None
    person, series, number = earlier.groups()
    patient = person.lower() if person else f"{(series or '').upper()}IM-{number}"
    return f"{'test' if split == 'test' else 'trainval'}_{patient}"


def _find_root(folder: Path) -> Path:
    for root in (folder / name for name in _ROOTS):
        if (root / "train").is_dir():
            return root
    raise ClsError(
        f"{folder} holds no folder train: give chest_xray, or its parent, with "
        "train/NORMAL, train/PNEUMONIA, test/NORMAL and test/PNEUMONIA."
    )


def _read_split(root: Path, split: str, size: int | None) -> list[Case]:
    cases = []
    for subfolder, klass in CLASSES.items():
        for path in list_images(root / split / subfolder):
            count_channels(path)  # refuses a file that is no image; some are RGB of grey content
            cases.append(
                Case(
                    name=case_name(split, stem(path)),
                    patient=patient_of(stem(path), split),
                    klass=klass,
                    origin=path,
                    read=partial(read_image, path, 1, size),
                )
            )
    return cases
