"""Whom a site protects: its patients, or each case for itself where no table names patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nnunetv2_federated.federation.case_table import (
    PATIENT_COLUMN,
    like_patients,
    patients_of,
    read_case_table,
)
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.text import some_cases
from nnunetv2_federated.nnunet.data.dataset import Dataset
from nnunetv2_federated.nnunet.data.folds import find_case_table


@dataclass(frozen=True)
class Patients:
    """The training cases of a site by patient."""

    unit: Literal["patient", "case"]
    """What is protected; ``case`` where no table names patients."""
    cases: Mapping[str, tuple[str, ...]]
    """Training cases of each patient, patients and cases in alphabetical order."""


def patients_of_site(
    dataset: Dataset,
    training_cases: Sequence[str],
    why: str = "differential privacy protects patients",
) -> Patients:
    """Return the patients of a site's training cases, by the case table of its dataset.

    Parameters
    ----------
    dataset
        Dataset of the site; its ``cases.csv`` with a column ``patient`` is read, if there is one.
    training_cases
        Cases that the site trains on, or is evaluated on.
    why
        Reason why patients have to be known, for the message.

    Raises
    ------
    SettingsError
        If the table cannot be read, has patients under another name, or none for a training case.
    """
    path = find_case_table(dataset)
    table = read_case_table(path) if path is not None else {}
    similar = like_patients(table)
    if similar:
        raise SettingsError(
            f"{path} has no column {PATIENT_COLUMN}, but {', '.join(similar)}: {why}, so "
            f"name the column {PATIENT_COLUMN}."
        )
    known = patients_of(table)
    if known is None:
        return Patients("case", {case: (case,) for case in sorted(training_cases)})
    missing = [case for case in training_cases if not known.get(case)]
    if missing:
        raise SettingsError(
            f"{path} names no {PATIENT_COLUMN} for {some_cases(missing)}: {why}, so fill "
            "in the column for each case."
        )
    cases: dict[str, list[str]] = {}
    for case in sorted(training_cases):
        cases.setdefault(known[case], []).append(case)
    return Patients("patient", {patient: tuple(cases[patient]) for patient in sorted(cases)})
