"""Draw folds that keep a patient together, and check that folds, cases and patients agree."""

from __future__ import annotations

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.labels import read_json, some
from nnunetv2_cls.tables import read_header, read_table

SPLITS_FILE = "splits_final.json"
CASE_TABLE = "cases.csv"
FOLDS = 5
SEED = 12345
"""Number of folds and random seed that nnU-Net uses, too."""
_LIKE_PATIENTS = re.compile(r"patient|subject|^pid$|^mrn$")
Splits: TypeAlias = list[dict[str, list[str]]]
"""For each fold the cases of ``train`` and ``val``."""


def patients_of(dataset_name: str) -> dict[str, str]:
    """Read the patient of every case from ``cases.csv`` of the raw dataset, or of the preprocessed.

    Returns
    -------
    dict
        Patient of each case; empty where there is no such table, or no column ``patient`` in it. A
        case whose patient is left blank is not in it.

    Raises
    ------
    ClsError
        If the table cannot be read, has no column ``case``, two patients for a case, or patients
        under another name than ``patient``.
    """
    path = _case_table(dataset_name)
    if path is None or not _has_patients(path):
        return {}
    patients: dict[str, str] = {}
    for row in read_table(path, ("case", "patient")):
        case, patient = row["case"], row["patient"]
        if patient and patients.setdefault(case, patient) != patient:
            raise ClsError(f"{path}: {case} has the patients {patients[case]} and {patient}.")
    return patients


def _case_table(dataset_name: str) -> Path | None:
    folders = [folder for folder in (nnUNet_raw.get(), nnUNet_preprocessed.get()) if folder]
    tables = [Path(folder) / dataset_name / CASE_TABLE for folder in folders]
    return next((table for table in tables if table.is_file()), None)


def _has_patients(path: Path) -> bool:
    """Return whether a table has the column ``patient``; refuse one that seems to misname it."""
    header = read_header(path)
    if "patient" in header:
        return True
    if others := [name for name in header if _LIKE_PATIENTS.search(name.lower())]:
        raise ClsError(
            f"{path} has no column patient, but {', '.join(others)}: name it patient (columns "
            "are separated by commas), so that a patient's images stay in one fold."
        )
    return False


def draw_folds(classes: Mapping[str, str], patients: Mapping[str, str]) -> Splits:
    """Draw five folds that keep a patient together and the classes in proportion.

    There are fewer folds if there are fewer patients.

    Parameters
    ----------
    classes
        Class of every case.
    patients
        Patient of each case whose patient is known; any other case is a patient of its own.

    Returns
    -------
    list
        Content of ``splits_final.json``; empty if all cases are of one patient.
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
    return patients.get(case, f"\0{case}")  # no patient has such a name


def splits_to_plan(
    folder: Path, classes: Mapping[str, str], patients: Mapping[str, str]
) -> tuple[Splits | None, str]:
    """Find the folds of a preprocessed dataset, or draw them by patient where there are none.

    Where no patient is known, the folds are left to nnU-Net.

    Parameters
    ----------
    folder
        Folder of the preprocessed dataset.
    classes
        Class of every case.
    patients
        Patient of each case, from :func:`patients_of`.

    Returns
    -------
    tuple
        Content of ``splits_final.json``, or ``None`` if nothing is to be written; and a note for
        the user on what was done.

    Raises
    ------
    ClsError
        If the present splits do not agree with cases and patients.
    """
    path = folder / SPLITS_FILE
    source = Path(nnUNet_raw.get() or folder) / folder.name / SPLITS_FILE
    present = next((file for file in (path, source) if file.is_file()), None)
    if present is not None:
        splits = read_splits(present)
        note = _check_all_folds(splits, classes, patients, present)
        return (None, note) if present == path else (splits, note or f"took the folds of {present}")
    if not any(case in patients for case in classes):
        return None, (
            f"no patient is known: nnU-Net will draw folds by image; if patients have several, say "
            f"so in {CASE_TABLE} of the raw dataset (columns case and patient) and plan again"
        )
    splits = draw_folds(classes, patients)
    if not splits:
        return None, "no folds: all cases are of one patient; train with fold all"
    count = _count_patients(classes, patients)
    return splits, f"drew {len(splits)} folds by patient and class ({count} patients)"


def _count_patients(cases: Collection[str], patients: Mapping[str, str]) -> int:
    return len({_group(case, patients) for case in cases})


def _check_all_folds(
    splits: Splits, cases: Collection[str], patients: Mapping[str, str], path: Path
) -> str:
    """Check every fold; return a note if cases are in none of them, else an empty string."""
    for fold in range(len(splits)):
        check_fold(splits, fold, cases, patients, path)
    if left := unused_cases(splits, cases):
        return f"{len(left)} of {len(cases)} cases are in no fold of {path} ({some(left)})"
    return ""


def read_splits(path: Path) -> Splits:
    """Read ``splits_final.json``.

    Raises
    ------
    ClsError
        If the file cannot be read, or has another form.
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
        Number of the fold.
    cases
        Cases of the dataset.
    patients
        Patient of each case, from :func:`patients_of`.
    path
        File of the splits, for error messages.

    Raises
    ------
    ClsError
        If there is no such fold, one of its cases does not exist, or a case or a patient is in both
        training and validation.
    """
    if not 0 <= fold < len(splits):
        raise ClsError(
            f"fold {fold} does not exist: {path} has the folds 0 to {len(splits) - 1}; nnU-Net "
            "would draw a random one by image."
        )
    training, validation = splits[fold]["train"], splits[fold]["val"]
    remedy = f"fix it, or remove it and run nnUNetv2_cls_plan {path.parent.name} again"
    if missing := {*training, *validation} - set(cases):
        raise ClsError(
            f"{path} names {len(missing)} cases that the dataset does not have "
            f"({some(missing)}) in fold {fold}: {remedy}."
        )
    if both := set(training) & set(validation):
        raise ClsError(
            f"{path} has {len(both)} cases in training and validation of fold {fold} "
            f"({some(both)}): {remedy}."
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
            f"({some(shared)}; {first} with {some(shared[first])} in validation): {remedy}."
        )


def unused_cases(splits: Splits, cases: Collection[str], fold: int | None = None) -> set[str]:
    """Return the cases that are in no part of a fold, or, without a fold, of any fold."""
    folds = splits if fold is None else [splits[fold]]
    return set(cases) - {case for one in folds for part in ("train", "val") for case in one[part]}


def check_folds_of_nnunet(
    fold: int, cases: Collection[str], patients: Mapping[str, str], dataset_name: str
) -> None:
    """Make sure that a fold which nnU-Net would draw itself exists and splits no patient.

    Raises
    ------
    ClsError
        If nnU-Net draws no such fold, or a patient has several cases.
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
    """Return the number of each case's patient; ``None`` if no patient has several of the cases."""
    if not _with_several_cases(cases, patients):
        return None
    numbers: dict[str, int] = {}
    return [numbers.setdefault(_group(case, patients), len(numbers)) for case in cases]
