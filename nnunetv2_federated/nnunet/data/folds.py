"""Folds: the training and validation cases of each, as nnU-Net chooses them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import save_json
from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.crossval_split import generate_crossval_split
from sklearn.model_selection import StratifiedGroupKFold

from nnunetv2_federated.federation.case_table import (
    like_patients,
    patients_of,
    read_case_table,
)
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.files import replacing
from nnunetv2_federated.federation.text import some_cases
from nnunetv2_federated.nnunet.data.dataset import (
    Dataset,
    check_configuration,
    preprocessed_cases,
    read_json,
)

SPLITS_FILE = "splits_final.json"
CASE_TABLE = "cases.csv"
"""File of the case table (:mod:`nnunetv2_federated.federation.case_table`), beside
``dataset.json`` in the raw or in the preprocessed dataset."""

Split = dict[str, list[str]]
"""Cases of a fold under ``train`` and ``val``, as in nnU-Net's ``splits_final.json``."""

_FOLDS = 5  # nnU-Net's number
_SEED = 12345  # nnU-Net's seed


def find_case_table(dataset: Dataset) -> Path | None:
    """Return the case table of a dataset, in ``nnUNet_raw`` or else beside its plans."""
    raw = nnUNet_raw.get()
    folders = [Path(raw) / dataset.name] if raw else []
    tables = [folder / CASE_TABLE for folder in (*folders, dataset.folder)]
    return next((path for path in tables if path.is_file()), None)


def known_patients(dataset: Dataset, table: Path | None = None) -> dict[str, str] | None:
    """Return the patient of each case; ``None`` if no case table has patients.

    Parameters
    ----------
    dataset
        Dataset whose own case table is read if ``table`` is ``None``.
    table
        Case table to read in place of the dataset's own.

    Raises
    ------
    SettingsError
        If the table is of another form.
    """
    path = table or find_case_table(dataset)
    return patients_of(read_case_table(path)) if path is not None else None


def _patients_to_draw_by(dataset: Dataset, table: Path | None) -> dict[str, str] | None:
    """Return the known patients; refuse a table that seems to have them under another name."""
    path = table or find_case_table(dataset)
    similar = like_patients(read_case_table(path)) if path is not None else []
    if similar:
        raise SettingsError(
            f"{path} has no column patient, but {', '.join(similar)}: name it patient to have "
            f"folds drawn by patient, or write {SPLITS_FILE} yourself."
        )
    return known_patients(dataset, table)


def read_splits(dataset: Dataset) -> list[Split]:
    """Read ``splits_final.json``.

    Raises
    ------
    SettingsError
        If it is absent, or of another form.
    """
    path = dataset.folder / SPLITS_FILE
    splits = read_json(path)
    if not (isinstance(splits, list) and splits and all(map(_is_split, splits))):
        raise SettingsError(
            f'{path}: expected nnU-Net\'s list of {{"train": [case, ...], "val": [case, ...]}}, '
            "one for each fold; correct it, or delete it to have folds drawn."
        )
    return splits


def _is_split(split: Any) -> bool:  # noqa: ANN401  # JSON
    return isinstance(split, dict) and all(
        isinstance(split.get(part), list) and all(isinstance(case, str) for case in split[part])
        for part in ("train", "val")
    )


def fold_split(
    dataset: Dataset, configuration: str, fold: int | str
) -> tuple[list[str], list[str]]:
    """Return training and validation cases of a fold, as nnU-Net's ``do_split`` chooses them.

    Creates ``splits_final.json`` where nnU-Net would: as nnU-Net does, but with all cases of a
    patient in one fold where the case table has patients. nnU-Net replaces a fold that the file
    does not have by a random 80:20 split. Here it is refused, because two commands would then
    disagree about the fold.

    Raises
    ------
    SettingsError
        If the fold does not exist, names cases that are not preprocessed or are in both of its
        parts, or there are too few cases for nnU-Net's five folds.
    """
    cases = preprocessed_cases(check_configuration(dataset, configuration))
    if fold == "all":
        return cases, cases
    if not (dataset.folder / SPLITS_FILE).is_file():
        _write_folds(dataset, cases, _patients_to_draw_by(dataset, None))
    splits = read_splits(dataset)
    if not (isinstance(fold, int) and 0 <= fold < len(splits)):
        raise SettingsError(
            f"fold {fold} does not exist: {dataset.name} has folds 0 to {len(splits) - 1} "
            f"({SPLITS_FILE}), or all."
        )
    training, validation = sorted(splits[fold]["train"]), sorted(splits[fold]["val"])
    unknown = {*training, *validation} - set(cases)
    if unknown:
        are = "is" if len(unknown) == 1 else "are"
        raise SettingsError(
            f"{SPLITS_FILE} of {dataset.name} names {some_cases(unknown)} in fold {fold} that "
            f"{are} not preprocessed for {configuration}: preprocess again, or take them out of "
            "the file."
        )
    _check_once(dataset, fold, training, validation)
    return training, validation


def _check_once(
    dataset: Dataset, fold: int, training: Sequence[str], validation: Sequence[str]
) -> None:
    """Refuse a fold that has a case twice, in one of its parts or in both."""
    twice = {case for part in (training, validation) for case in part if part.count(case) > 1}
    if twice:
        raise SettingsError(
            f"{SPLITS_FILE} of {dataset.name} has {some_cases(twice)} more than once in a part of "
            f"fold {fold}: correct it, or delete it to have folds drawn."
        )
    both = set(training) & set(validation)
    if both:
        raise SettingsError(
            f"{SPLITS_FILE} of {dataset.name} has {some_cases(both)} in training and in validation "
            f"of fold {fold}: correct it, or delete it to have folds drawn."
        )


def fold_of_site(
    dataset: Dataset, configuration: str, fold: int | str
) -> tuple[list[str], list[str]]:
    """Return training and validation cases of a site's dataset in a fold, as :func:`fold_split`.

    A site that has too few cases or patients for nnU-Net's five folds, and no
    ``splits_final.json`` of its own, trains with all cases in every fold and validates none: the
    model is validated on the cases of the other sites.

    Raises
    ------
    SettingsError
        As :func:`fold_split`.
    """
    if fold in range(_FOLDS) and not (dataset.folder / SPLITS_FILE).is_file():
        cases = preprocessed_cases(check_configuration(dataset, configuration))
        patients = known_patients(dataset) or {}
        if len({patients.get(case, case) for case in cases}) < _FOLDS:
            return cases, []
    return fold_split(dataset, configuration, fold)


def draw_by_table(
    dataset: Dataset, configuration: str, folds: Iterable[int | str], table: Path | None
) -> None:
    """Draw the folds by the patients of a case table, unless they exist or none is needed.

    Parameters
    ----------
    dataset, configuration
        Dataset and configuration whose preprocessed cases are drawn.
    folds
        Folds that will be used.
    table
        Case table; ``None`` if the user gave none: :func:`fold_split` then draws the folds.

    Raises
    ------
    SettingsError
        As :func:`fold_split`, and if the table has no patient for a case.
    """
    drawn = (dataset.folder / SPLITS_FILE).is_file()
    if table is not None and not drawn and any(fold != "all" for fold in folds):
        cases = preprocessed_cases(check_configuration(dataset, configuration))
        _write_folds(dataset, cases, _patients_to_draw_by(dataset, table))


def _write_folds(
    dataset: Dataset, cases: Sequence[str], patients: Mapping[str, str] | None
) -> None:
    path = dataset.folder / SPLITS_FILE
    try:
        splits = draw_folds(cases, patients)
    except ValueError as error:
        raise SettingsError(
            f"{dataset.name}: {error}; use fold all, or write {path} yourself."
        ) from error
    try:
        with replacing(path, f".{os.getpid()}.tmp") as temporary:  # sites may share a dataset
            save_json(splits, str(temporary))
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be written ({error.strerror}), which lists the cases of each "
            "fold: let it be written once, as nnU-Net does before its first training, or use fold "
            "all."
        ) from error


def draw_folds(cases: Sequence[str], patients: Mapping[str, str] | None) -> list[Split]:
    """Draw nnU-Net's five folds, with all cases of a patient in one fold.

    Where each case is a patient of its own the folds are nnU-Net's. Otherwise they are drawn with
    nnU-Net's seed, and their sizes differ by no more than the patients make necessary.

    Parameters
    ----------
    cases
        Cases in nnU-Net's order, sorted.
    patients
        Case to patient; ``None`` if the patients are not known.

    Raises
    ------
    ValueError
        If there are fewer cases or patients than folds, or a case without patient.
    """
    if len(cases) < _FOLDS:
        raise ValueError(f"has {len(cases)} cases, nnU-Net's five folds need five")
    patient_of_each = list(cases) if patients is None else _patient_of_each(cases, patients)
    count = len(set(patient_of_each))
    if count == len(cases):
        return [dict(split) for split in generate_crossval_split(list(cases), _SEED, _FOLDS)]
    if count < _FOLDS:
        raise ValueError(f"has cases of {count} patients, five folds by patient need five")
    # one class for all cases: only the sizes of the folds are balanced
    splitter = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=_SEED)
    return [
        {"train": [cases[i] for i in train], "val": [cases[i] for i in val]}
        for train, val in splitter.split(cases, [0] * len(cases), patient_of_each)
    ]


def _patient_of_each(cases: Sequence[str], patients: Mapping[str, str]) -> list[str]:
    without = [case for case in cases if not patients.get(case)]
    if without:
        raise ValueError(f"the case table has no patient for {some_cases(without)}")
    return [patients[case] for case in cases]


def shared_patients(
    training: Iterable[str], validation: Iterable[str], patients: Mapping[str, str]
) -> set[str]:
    """Return the patients who have cases both in training and in validation."""
    trained, validated = (
        {patients[case] for case in part if case in patients} for part in (training, validation)
    )
    return trained & validated
