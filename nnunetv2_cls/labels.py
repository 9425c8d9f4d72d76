"""Labels of whole images beside an nnU-Net dataset: ``classes`` and ``labelsTr.json``.

In ``nnUNet_raw`` the file holds ``{case: class index}``, as in DKFZ's image classification. The
copy in ``nnUNet_preprocessed`` holds ``{case: class name}``: an index would mean another class
after the classes are numbered anew, a name does not.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets
from numpy.typing import NDArray

from nnunetv2_cls.errors import ClsError

logger = logging.getLogger(__name__)

LABELS_FILE = "labelsTr.json"
TEST_LABELS_FILE = "labelsTs.json"


def find_name(dataset: str) -> str:
    """Return the name of a dataset, given by name or id.

    Raises
    ------
    ClsError
        If nnU-Net's folders have no such dataset, or several with this id.
    """
    if dataset.startswith("Dataset"):
        names = [dataset]
    else:
        names = list(find_candidate_datasets(int(dataset))) if dataset.isdecimal() else []
    if not names:
        raise ClsError(
            f"dataset {dataset} is unknown: give an id such as 501 or a name such as "
            "Dataset501_Name."
        )
    if len(names) > 1:
        raise ClsError(
            f"dataset {dataset}: more than one has this id, {', '.join(map(str, names))}; give the "
            "name, or rename or remove the folder that is not meant."
        )
    return str(names[0])


def read_classes(dataset_json: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the class names of ``dataset.json``, by index.

    Raises
    ------
    ClsError
        If there are no classes, or the indices are not 0, 1, 2, ...
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
    """Class of every case of a dataset."""

    classes: tuple[str, ...]
    """Class names by index."""
    of_case: Mapping[str, int]
    """Class index of each case."""

    def of(self, cases: Sequence[str]) -> NDArray[np.int64]:
        """Return the class indices of cases, shape (cases,)."""
        return np.asarray([self.of_case[case] for case in cases], np.int64)

    def check(self, cases: Iterable[str]) -> None:
        """Make sure that every preprocessed case has a label, and every label a case.

        A class may have no case here: another site may have it.

        Raises
        ------
        ClsError
            Naming up to three cases that lack the one or the other.
        """
        known = set(cases)
        for names, what, remedy in (
            (known - set(self.of_case), "images without label", f"add them to {LABELS_FILE}"),
            (set(self.of_case) - known, "labels without image", "preprocess them, or remove them"),
        ):
            if names:
                raise ClsError(f"{len(names)} {what} ({some(names)}): {remedy}.")

    @property
    def absent(self) -> list[str]:
        """Class names that no case has."""
        present = set(self.of_case.values())
        return [name for index, name in enumerate(self.classes) if index not in present]

    @property
    def names(self) -> dict[str, str]:
        """Class name of each case."""
        return {case: self.classes[index] for case, index in self.of_case.items()}


def some(names: Iterable[str]) -> str:
    """List the first three names, for a message."""
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (", ..." if len(ordered) > 3 else "")


def read_json(path: Path) -> Any:  # noqa: ANN401  # JSON
    """Read a JSON file.

    Raises
    ------
    ClsError
        If the file is absent or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ClsError(f"{path} cannot be read: {error}") from error


def read_labels(path: Path, classes: tuple[str, ...]) -> ImageLabels:
    """Read ``{case: class index}``, the file in ``nnUNet_raw``.

    Raises
    ------
    ClsError
        If the file is absent, has another form, or holds an index that is no class.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ClsError(f"{path}: expected {{case: class index, ...}}.")
    for case, index in content.items():
        if type(index) is not int or not 0 <= index < len(classes):
            raise ClsError(
                f"{path}: {case} has the class {index!r}; known are 0 to {len(classes) - 1} "
                f"({', '.join(classes)})."
            )
    return ImageLabels(classes, content)


def raw_folder(dataset_name: str, labels_file: str = LABELS_FILE) -> Path | None:
    """Return the folder of a dataset in ``nnUNet_raw`` if it holds this file of labels."""
    raw = nnUNet_raw.get()
    folder = Path(raw) / dataset_name if raw else None
    return folder if folder and (folder / labels_file).is_file() else None


def raw_labels(folder: Path, labels_file: str = LABELS_FILE) -> ImageLabels:
    """Read the labels of a raw dataset, whose own ``dataset.json`` numbers the classes.

    Raises
    ------
    ClsError
        If the labels are not usable.
    """
    return read_labels(folder / labels_file, read_classes(read_json(folder / "dataset.json")))


def read_test_labels(dataset_name: str, classes: tuple[str, ...]) -> ImageLabels | None:
    """Read the labels of the test cases; ``None`` where ``nnUNet_raw`` has none.

    Raises
    ------
    ClsError
        If the labels are not usable, or of other classes than these.
    """
    raw = raw_folder(dataset_name, TEST_LABELS_FILE)
    if raw is None:
        return None
    labels = raw_labels(raw, TEST_LABELS_FILE)
    check_same_classes(dataset_name, labels.classes, classes)
    return labels


def labels_to_plan(dataset_name: str) -> ImageLabels:
    """Read the labels that planning puts into ``nnUNet_preprocessed``: those of ``nnUNet_raw``.

    Without the raw dataset, the labels that are in ``nnUNet_preprocessed`` stay. If an older
    version wrote them, as indices, ``dataset.json`` tells which classes they mean.

    Raises
    ------
    ClsError
        If there are no usable labels.
    """
    raw = raw_folder(dataset_name)
    if raw is not None:
        return raw_labels(raw)
    folder = Path(nnUNet_preprocessed.require()) / dataset_name
    path = folder / LABELS_FILE
    classes = read_classes(read_json(folder / "dataset.json"))
    if not path.is_file():
        raise _no_labels(dataset_name)
    if _is_named(path):
        return _read_copy(path, classes)
    logger.warning(
        "%s is of an older version, without class names: its indices are taken as %s",
        path,
        ", ".join(f"{index} {name}" for index, name in enumerate(classes)),
    )
    return read_labels(path, classes)


def write_labels(dataset_name: str, labels: ImageLabels) -> None:
    """Write labels, and the classes that they mean, to ``nnUNet_preprocessed``."""
    folder = Path(nnUNet_preprocessed.require()) / dataset_name
    content = read_json(folder / "dataset.json")
    raw = raw_folder(dataset_name)
    # in the order of this file: a federation compares it between sites, and with the raw one
    classes = read_json((raw or folder) / "dataset.json")["classes"]
    if json.dumps(content.get("classes")) != json.dumps(classes):
        write_json(folder / "dataset.json", {**content, "classes": classes})
    write_json(folder / LABELS_FILE, labels.names)


def preprocessed_labels(dataset_name: str, dataset_json: Mapping[str, Any]) -> ImageLabels:
    """Read the labels of a preprocessed dataset, which ``nnUNet_raw`` must confirm if it has any.

    A missing copy in ``nnUNet_preprocessed`` is written: a federation partitions cases by it.

    Raises
    ------
    ClsError
        If the labels are in neither place, not usable, or differ from those in ``nnUNet_raw``.
    """
    classes = read_classes(dataset_json)
    path = Path(nnUNet_preprocessed.require()) / dataset_name / LABELS_FILE
    raw = raw_folder(dataset_name)
    if raw is None:
        if not path.is_file():
            raise _no_labels(dataset_name)
        return _read_copy(path, classes)
    current = raw_labels(raw)
    check_same_classes(dataset_name, current.classes, classes)
    if path.is_file():
        copy = _read_copy(path, classes) if _is_named(path) else read_labels(path, classes)
        _check_same_labels(dataset_name, raw / LABELS_FILE, current.names, copy.names)
    else:
        write_json(path, current.names)
    return current


def _no_labels(dataset_name: str) -> ClsError:
    return ClsError(
        f"{LABELS_FILE} of {dataset_name} is neither in nnUNet_preprocessed nor in nnUNet_raw: "
        "make the dataset with nnUNetv2_cls_convert, or write {case: class index} beside "
        "dataset.json."
    )


def _again(dataset_name: str) -> str:
    return f"run nnUNetv2_cls_plan {dataset_name} again, with the options you gave it"


def _is_named(path: Path) -> bool:
    content = read_json(path)
    return isinstance(content, dict) and all(isinstance(v, str) for v in content.values())


def _read_copy(path: Path, classes: tuple[str, ...]) -> ImageLabels:
    """Read ``{case: class name}``, the copy in ``nnUNet_preprocessed``."""
    if not _is_named(path):
        raise ClsError(
            f"{path} has no class names, as older versions wrote it: {_again(path.parent.name)}, "
            "where nnUNet_raw has the dataset."
        )
    content: dict[str, str] = read_json(path)
    if unknown := set(content.values()) - set(classes):
        raise ClsError(
            f"{path} has the classes {some(unknown)}, which are none of dataset.json's "
            f"({', '.join(classes)}): {_again(path.parent.name)}."
        )
    return ImageLabels(classes, {case: classes.index(name) for case, name in content.items()})


def check_same_classes(
    dataset_name: str, raw: tuple[str, ...], preprocessed: tuple[str, ...]
) -> None:
    """Raise ``ClsError`` unless both have the same classes, in the same order."""
    if raw != preprocessed:
        raise ClsError(
            f"the classes of {dataset_name} are {', '.join(raw)} in nnUNet_raw and "
            f"{', '.join(preprocessed)} in nnUNet_preprocessed: {_again(dataset_name)}."
        )


def _check_same_labels(
    dataset_name: str, source: Path, raw: Mapping[str, str], copy: Mapping[str, str]
) -> None:
    changed = sorted(case for case in raw.keys() | copy.keys() if raw.get(case) != copy.get(case))
    if changed:
        first = changed[0]
        raise ClsError(
            f"{len(changed)} labels of {dataset_name} are others in {source} than in the copy in "
            f"nnUNet_preprocessed ({some(changed)}; {first} is {raw.get(first, 'without label')} "
            f"there and {copy.get(first, 'without label')} in the copy): {_again(dataset_name)}."
        )


def write_json(path: Path, content: object) -> None:
    """Replace a JSON file atomically, and sync it to the disk: sites may share a dataset."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=4) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ClsError(f"{path} cannot be written: {error.strerror}.") from error
