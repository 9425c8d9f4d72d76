"""Image-level labels beside an nnU-Net dataset: ``classes`` and ``labelsTr.json``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from numpy.typing import NDArray

from nnunetv2_cls.errors import ClsError

LABELS_FILE = "labelsTr.json"
TEST_LABELS_FILE = "labelsTs.json"


def find_name(dataset: str) -> str:
    """Return the name of a dataset, given as name or id.

    Raises
    ------
    ClsError
        If nnU-Net's folders have no such dataset.
    """
    try:
        return str(
            maybe_convert_to_dataset_name(
                dataset if dataset.startswith("Dataset") else int(dataset)
            )
        )
    except (ValueError, RuntimeError) as error:
        raise ClsError(
            f"dataset {dataset} is unknown: give an id such as 501 or a name such as "
            "Dataset501_Name."
        ) from error


def read_classes(dataset_json: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the class names of ``dataset.json``, by index.

    Raises
    ------
    ClsError
        If there are none, or the indices are not 0, 1, 2, ...
    """
    classes = dataset_json.get("classes")
    if not isinstance(classes, dict) or len(classes) < 2:
        raise ClsError(
            f'classes in dataset.json is {classes}: expected at least two, as in "classes": '
            '{"normal": 0, "pneumonia": 1}.'
        )
    if sorted(map(str, classes.values())) != sorted(map(str, range(len(classes)))):
        raise ClsError(
            f"classes in dataset.json has the indices {sorted(classes.values())}: number them 0 to "
            f"{len(classes) - 1}."
        )
    return tuple(sorted(classes, key=lambda name: int(classes[name])))


@dataclass(frozen=True)
class ImageLabels:
    """Class of every case."""

    classes: tuple[str, ...]
    of_case: Mapping[str, int]

    def of(self, cases: Sequence[str]) -> NDArray[np.int64]:
        """Class indices of cases, shape (cases,)."""
        return np.asarray([self.of_case[case] for case in cases], np.int64)

    def check(self, cases: Iterable[str]) -> None:
        """Make sure that every preprocessed case has a label, and every label a case.

        Raises
        ------
        ClsError
            Naming up to three that have not.
        """
        known = set(cases)
        for names, what, mend in (
            (known - set(self.of_case), "images without label", f"add them to {LABELS_FILE}"),
            (set(self.of_case) - known, "labels without image", "preprocess them, or remove them"),
        ):
            if names:
                some = ", ".join(sorted(names)[:3])
                raise ClsError(f"{len(names)} {what} ({some}, ...): {mend}.")
        present = set(self.of_case.values())
        absent = [name for index, name in enumerate(self.classes) if index not in present]
        if absent:
            raise ClsError(
                f"no case is of class {', '.join(absent)}: take it out of classes in dataset.json, "
                "or add cases."
            )


def read_labels(path: Path, classes: tuple[str, ...]) -> ImageLabels:
    """Read ``{case: class index}``.

    Raises
    ------
    ClsError
        If the file is absent, of another form, or has an index that is no class.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ClsError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ClsError(f"{path}: expected {{case: class index, ...}}.")
    for case, index in content.items():
        if type(index) is not int or not 0 <= index < len(classes):
            raise ClsError(
                f"{path}: {case} has the class {index!r}; known are 0 to {len(classes) - 1} "
                f"({', '.join(classes)})."
            )
    return ImageLabels(classes, content)


def preprocessed_labels(dataset_name: str, dataset_json: Mapping[str, Any]) -> ImageLabels:
    """Read the labels of a preprocessed dataset; copy them there from ``nnUNet_raw`` if missing.

    Raises
    ------
    ClsError
        If they are in neither place, or not usable.
    """
    classes = read_classes(dataset_json)
    path = Path(nnUNet_preprocessed.require()) / dataset_name / LABELS_FILE
    if not path.is_file():
        raw = nnUNet_raw.get()
        source = Path(raw) / dataset_name / LABELS_FILE if raw else path
        if not source.is_file():
            raise ClsError(
                f"{LABELS_FILE} of {dataset_name} is neither in nnUNet_preprocessed nor in "
                "nnUNet_raw: make the dataset with nnUNetv2_cls_convert, or write "
                "{case: class index} beside dataset.json."
            )
        shutil.copyfile(source, path)
    return read_labels(path, classes)
