"""Folds that keep a patient together, and whether folds, cases and patients agree."""

from __future__ import annotations

import csv
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from nnunetv2_cls.conversion.tables import read_table
from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.labels import read_json, some

SPLITS_FILE = "splits_final.json"
CASE_TABLE = "cases.csv"
FOLDS = 5
SEED = 12345
"""nnU-Net's, both."""
_LIKE_PATIENTS = re.compile(r"patient|subject|^pid$|^mrn$")
Splits: TypeAlias = list[dict[str, list[str]]]
"""For each fold the cases of ``train`` and ``val``."""


def patients_of(dataset_name: str) -> dict[str, str]:
    """Read the patient of every case from ``cases.csv`` of the raw dataset, or of the preprocessed.

    Returns
    -------
    dict
        Case to patient; empty where there is no such table, or no column ``patient`` in it. A case
        whose patient is left blank is not in it.

    Raises
    ------
    ClsError
        If the table cannot be read, has no column ``case``, two patients for a case, or patients
        under another name than ``patient``.
    """
    folders = [folder for folder in (nnUNet_raw.get(), nnUNet_preprocessed.get()) if folder]
    tables = [Path(folder) / dataset_name / CASE_TABLE for folder in folders]
    path = next((table for table in tables if table.is_file()), None)
    header = _header(path) if path is not None else []
    if path is None or "patient" not in header:
        if others := [name for name in header if _LIKE_PATIENTS.search(name.lower())]:
            raise ClsError(
                f"{path} has no column patient, but {', '.join(others)}: name it patient (columns "
                "are separated by commas), so that a patient's images stay in one fold."
            )
        return {}
    patients: dict[str, str] = {}
    for row in read_table(path, ("case", "patient")):
        case, patient = row["case"], row["patient"]
        if patient and patients.setdefault(case, patient) != patient:
            raise ClsError(f"{path}: {case} has the patients {patients[case]} and {patient}.")
    return patients


def _header(path: Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [name.strip() for name in next(csv.reader(file), [])]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ClsError(f"{path} cannot be read as a CSV table: {error}.") from error


def draw_folds(classes: Mapping[str, str], patients: Mapping[str, str]) -> Splits:
    """Draw five folds that keep a patient together and the classes in proportion.

    Fewer, where there are fewer patients.

    Parameters
    ----------
    classes
        Class of every case.
    patients
        Patient of a case; one without is a patient of its own.

    Returns
    -------
    list
        Content of ``splits_final.json``; empty where all cases are of one patient.
    """
    cases = sorted(classes)
    groups = [_group(case, patients) for case in cases]
    folds = min(FOLDS, len(set(groups)))
    if folds < 2:
        return []
    drawn = GroupKFold(n_splits=folds)
    if max(Counter(classes.values()).values()) >= folds:  # else there is nothing to stratify
        drawn = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=SEED)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        return [
            {"train": [cases[i] for i in train], "val": [cases[i] for i in val]}
            for train, val in drawn.split(cases, [classes[c] for c in cases], groups)
        ]


def _group(case: str, patients: Mapping[str, str]) -> str:
    return patients.get(case, f"\0{case}")  # no patient is called so


def splits_to_plan(
    folder: Path, classes: Mapping[str, str], patients: Mapping[str, str]
) -> tuple[Splits | None, str]:
    """Find the folds of a preprocessed dataset, or draw them by patient where there are none.

    Where no patient is known, nnU-Net may draw its own.

    Parameters
    ----------
    folder
        Of the preprocessed dataset.
    classes
        Class of every case.
    patients
        As :func:`patients_of` returns them.

    Returns
    -------
    tuple
        Content of ``splits_final.json``, ``None`` if nothing is to be written; and what was done,
        for the user.

    Raises
    ------
    ClsError
        If the splits that are there do not agree with cases and patients.
    """
    path = folder / SPLITS_FILE
    source = Path(nnUNet_raw.get() or folder) / folder.name / SPLITS_FILE
    found = next((file for file in (path, source) if file.is_file()), None)
    if found is not None:
        splits = read_splits(found)
        for fold in range(len(splits)):
            check_fold(splits, fold, classes, patients, found)
        said = "" if found == path else f"took the folds of {found}"
        if left := unused_cases(splits, classes):
            said = f"{len(left)} of {len(classes)} cases are in no fold of {found} ({some(left)})"
        return None if found == path else splits, said
    if not any(case in patients for case in classes):
        return None, (
            f"no patient is known: nnU-Net will draw folds by image; if patients have several, say "
            f"so in {CASE_TABLE} of the raw dataset (columns case and patient) and plan again"
        )
    splits = draw_folds(classes, patients)
    if not splits:
        return None, "no folds: all cases are of one patient; train with fold all"
    count = len({_group(case, patients) for case in classes})
    return splits, f"drew {len(splits)} folds by patient and class ({count} patients)"


def read_splits(path: Path) -> Splits:
    """Read ``splits_final.json``.

    Raises
    ------
    ClsError
        If it cannot be read, or is of another form.
    """
    content = read_json(path)
    if not (isinstance(content, list) and content and all(map(_is_fold, content))):
        raise ClsError(f'{path}: expected [{{"train": [case, ...], "val": [case, ...]}}, ...].')
    splits: Splits = content
    return splits


def _is_fold(fold: Any) -> bool:  # noqa: ANN401  # JSON
    return isinstance(fold, dict) and all(
        isinstance(fold.get(part), list) and all(isinstance(case, str) for case in fold[part])
        for part in ("train", "val")
    )


def check_fold(
    splits: Splits,
    fold: int,
    cases: Collection[str],
    patients: Mapping[str, str],
    path: Path,
) -> None:
    """Make sure that a fold exists, and agrees with the cases and their patients.

    Parameters
    ----------
    splits
        All folds.
    fold
        To be trained.
    cases
        Of the dataset.
    patients
        As :func:`patients_of` returns them.
    path
        Of the splits, for messages.

    Raises
    ------
    ClsError
        If there is no such fold; if a case of it does not exist, or is in training and validation,
        or a patient is.
    """
    if not 0 <= fold < len(splits):
        raise ClsError(
            f"fold {fold} does not exist: {path} has the folds 0 to {len(splits) - 1}; nnU-Net "
            "would draw a random one by image."
        )
    training, validation = splits[fold]["train"], splits[fold]["val"]
    anew = f"mend it, or remove it and run nnUNetv2_cls_plan {path.parent.name} again"
    if missing := {*training, *validation} - set(cases):
        raise ClsError(
            f"{path} names {len(missing)} cases that the dataset does not have "
            f"({some(missing)}) in fold {fold}: {anew}."
        )
    if both := set(training) & set(validation):
        raise ClsError(
            f"{path} has {len(both)} cases in training and validation of fold {fold} "
            f"({some(both)}): {anew}."
        )
    trained = {patients[case] for case in training if case in patients}
    shared: dict[str, list[str]] = defaultdict(list)
    for case in validation:
        if patients.get(case) in trained:
            shared[patients[case]].append(case)
    if shared:
        first = min(shared)
        raise ClsError(
            f"{path} has {len(shared)} patients in training and validation of fold {fold} "
            f"({some(shared)}; {first} with {some(shared[first])} in validation): {anew}."
        )


def unused_cases(splits: Splits, cases: Collection[str], fold: int | None = None) -> set[str]:
    """Cases that are in no part of a fold, or of any fold."""
    folds = splits if fold is None else [splits[fold]]
    return set(cases) - {case for one in folds for part in ("train", "val") for case in one[part]}


def check_own_folds(
    fold: int, cases: Collection[str], patients: Mapping[str, str], dataset_name: str
) -> None:
    """Make sure that the folds which nnU-Net would draw by itself exist and split no patient.

    Raises
    ------
    ClsError
        If not.
    """
    if not 0 <= fold < FOLDS or len(cases) < FOLDS:
        raise ClsError(
            f"fold {fold} of {len(cases)} cases does not exist: nnU-Net draws the folds 0 to "
            f"{FOLDS - 1} of at least {FOLDS} cases; write {SPLITS_FILE}, or use fold all."
        )
    several = _with_several_cases(cases, patients)
    if several:
        raise ClsError(
            f"{dataset_name} has no {SPLITS_FILE}, and {len(several)} patients have several images "
            f"({some(several)}): nnU-Net would draw folds by image; run nnUNetv2_cls_plan "
            f"{dataset_name} again, with the options you gave it, which draws them by patient."
        )


def _with_several_cases(cases: Collection[str], patients: Mapping[str, str]) -> list[str]:
    counts = Counter(patients[case] for case in cases if case in patients)
    return [patient for patient, count in counts.items() if count > 1]


def group_numbers(cases: Sequence[str], patients: Mapping[str, str]) -> list[int] | None:
    """Give each patient a number; ``None`` where none is known to have several of the cases."""
    if not _with_several_cases(cases, patients):
        return None
    numbers: dict[str, int] = {}
    return [numbers.setdefault(_group(case, patients), len(numbers)) for case in cases]
