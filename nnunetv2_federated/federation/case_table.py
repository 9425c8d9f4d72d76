"""The case table: a CSV file with one row for each case, and what the user knows of the cases.

Column ``case`` holds nnU-Net's case identifiers; further columns (a label, a centre, ``patient``)
are used by name. A table ``cases.csv`` beside ``dataset.json`` is used by default.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from nnunetv2_federated.federation.errors import SettingsError

CASE_COLUMN = "case"
PATIENT_COLUMN = "patient"
_LIKE_PATIENTS = re.compile(r"patient|subject|^pid$|^mrn$")


def read_case_table(path: Path) -> dict[str, dict[str, str]]:
    """Read a case table.

    Parameters
    ----------
    path
        Comma-separated file in UTF-8 with a header row and a column ``case``.

    Returns
    -------
    dict
        Case to its other columns (column name to value), in the order of the file; surrounding
        blanks are removed.

    Raises
    ------
    SettingsError
        If the file cannot be read, has no column ``case``, a row of the wrong length, a row without
        a case, or a case twice.
    """
    rows = _read_rows(path)
    header = [name.strip() for name in rows[0][1]] if rows else []
    if CASE_COLUMN not in header:
        raise SettingsError(
            f"case table {path} has no column '{CASE_COLUMN}', only {_quoted(header)}; "
            f"name the column of case identifiers '{CASE_COLUMN}' and separate columns by commas"
        )
    if len(set(header)) < len(header):
        raise SettingsError(f"case table {path} has two columns of one name; rename one: {header}")
    table: dict[str, dict[str, str]] = {}
    for line, values in rows[1:]:
        if len(values) != len(header):
            raise SettingsError(
                f"case table {path}, line {line}: {len(values)} values for {len(header)} columns; "
                "quote values that contain a comma"
            )
        row = {name: value.strip() for name, value in zip(header, values, strict=True)}
        case = row.pop(CASE_COLUMN)
        if not case:
            raise SettingsError(f"case table {path}, line {line}: no '{CASE_COLUMN}'; fill it in")
        if case in table:
            raise SettingsError(
                f"case table {path}, line {line}: case '{case}' is there twice; keep one row"
            )
        table[case] = row
    return table


def table_column(table: Mapping[str, Mapping[str, str]], column: str) -> dict[str, str]:
    """Return one column of a case table, as case to value.

    Raises
    ------
    SettingsError
        If the table has no such column.
    """
    known = sorted({name for row in table.values() for name in row})
    if column not in known:
        raise SettingsError(
            f"the case table has no column '{column}'; it has {_quoted(known)}: "
            "choose one of these or add the column to --case-table"
        )
    return {case: row[column] for case, row in table.items()}


def patients_of(table: Mapping[str, Mapping[str, str]]) -> dict[str, str] | None:
    """Return the patient of each case; ``None`` if the table has no column ``patient``."""
    if not table or PATIENT_COLUMN not in next(iter(table.values())):
        return None
    return table_column(table, PATIENT_COLUMN)


def like_patients(table: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the columns that seem to hold patients, if none is named ``patient``."""
    columns = next(iter(table.values()), {})
    if PATIENT_COLUMN in columns:
        return []
    return [name for name in columns if _LIKE_PATIENTS.search(name.lower())]


def _read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return the rows that are not blank, each with its line number for messages."""
    try:
        # utf-8-sig: spreadsheet programs write a byte order mark before the first column's name
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            return [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SettingsError(
            f"case table {path} cannot be read ({error}); give --case-table a CSV file in UTF-8"
        ) from error


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
