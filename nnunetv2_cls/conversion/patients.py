"""Find the patients of images in a table of the user."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from nnunetv2_cls.conversion.images import stem
from nnunetv2_cls.conversion.source import Case, Source
from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.tables import read_table

_DEEPEST = 4
"""Parts of a path that a table may name: the file and up to three folders."""


def with_patients(source: Source, table: Path) -> Source:
    """Return a source whose cases have the patients of a table, or their own where it names none.

    Parameters
    ----------
    source
        Dataset from a reader.
    table
        CSV file with the columns ``patient`` and ``case``, the case's name in the dataset, or
        ``file``: ``name.png``, or ``class/name.png`` where several images have that name. Or the
        file ``pneumonia-challenge-dataset-mappings_2018.json`` that RSNA publishes.

    Raises
    ------
    ClsError
        If the table cannot be read, contradicts itself, or leaves a training image without patient.
    """
    patients = (
        read_nih_patients(table) if table.suffix.lower() == ".json" else _read_patients(table)
    )
    cases = (*source.training, *source.test)
    names = Counter(name for case in cases for name in _short_names(case))

    def with_patient(case: Case) -> Case:
        unique = [name for name in _short_names(case) if names[name] == 1]
        keys = (case.name, *_long_names(case), *unique)
        patient = next((patients[key] for key in keys if key in patients), case.patient)
        return replace(case, patient=patient)

    training = tuple(with_patient(case) for case in source.training)
    unknown = [case.origin for case in training if case.patient is None]
    if unknown:
        first = unknown[0]
        raise ClsError(
            f"{table} has no row for {first.parent.name}/{first.name} ({len(unknown)} of "
            f"{len(training)} training images): name it so in the column file, or without its "
            "folder if no other image has that name."
        )
    return replace(
        source, training=training, test=tuple(with_patient(case) for case in source.test)
    )


def read_nih_patients(mapping: Path) -> dict[str, str]:
    """Read RSNA's mapping: the patient in NIH's ChestX-ray14 of each image id of the challenge.

    Raises
    ------
    ClsError
        If the file cannot be read, or is no such mapping.
    """
    try:
        rows = json.loads(mapping.read_text(encoding="utf-8"))
        matches = {row["subset_img_id"]: re.match(r"(\d{8})_\d{3}", row["img_id"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClsError(f"{mapping} is no {_MAPPING}: {type(error).__name__} {error}.") from error
    for image, patient in matches.items():
        if patient is None:
            raise ClsError(f"{mapping} is no {_MAPPING}: {image} has another img_id.")
    return {image: f"nih_{patient[1]}" for image, patient in matches.items() if patient}


_MAPPING = "list of objects with subset_img_id and img_id, such as 00000001_000.png"


def _read_patients(table: Path) -> Mapping[str, str]:
    patients: dict[str, str] = {}
    for row in read_table(table, ("patient",), one_of=("case", "file")):
        key = row["case"] or row["file"].replace("\\", "/")
        if not row["patient"] or patients.setdefault(key, row["patient"]) != row["patient"]:
            raise ClsError(f"{table}: {key} has no patient, or several; one is needed.")
    return patients


def _long_names(case: Case) -> list[str]:
    """Return names with one folder or more, such as ``class/name.png`` and ``class/name``."""
    parts = case.origin.parts
    depths = range(min(_DEEPEST, len(parts)), 1, -1)
    return [
        "/".join((*parts[-depth:-1], name))
        for depth in depths
        for name in (case.origin.name, stem(case.origin))
    ]


def _short_names(case: Case) -> set[str]:
    return {case.origin.name, stem(case.origin)}
