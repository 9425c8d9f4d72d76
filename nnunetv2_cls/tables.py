"""Read CSV tables of users."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_cls.errors import ClsError


def read_table(
    path: Path, columns: Sequence[str], one_of: Sequence[str] = ()
) -> list[dict[str, str]]:
    """Read the named columns of a CSV file, without surrounding blanks.

    Parameters
    ----------
    path
        CSV file with a header.
    columns
        Columns that the file must have.
    one_of
        Columns of which the file must have at least one; those that it lacks are read as empty.

    Returns
    -------
    list
        For each row the value of each column.

    Raises
    ------
    ClsError
        If the file cannot be read, or lacks a column.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            _check_header(path, reader.fieldnames or (), columns, one_of)
            return [
                {name: (row.get(name) or "").strip() for name in (*columns, *one_of)}
                for row in reader
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ClsError(f"{path} cannot be read as a CSV table: {error}.") from error


def _check_header(
    path: Path, header: Sequence[str], columns: Sequence[str], one_of: Sequence[str]
) -> None:
    missing = [name for name in columns if name not in header]
    if one_of and not set(one_of) & set(header):
        missing.append(" or ".join(one_of))
    if missing:
        raise ClsError(
            f"{path} lacks the column {', '.join(missing)}: it has {', '.join(header) or 'none'}."
        )


def read_header(path: Path) -> list[str]:
    """Read the names of the columns of a CSV file; none if the file is empty.

    Raises
    ------
    ClsError
        If the file cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [name.strip() for name in next(csv.reader(file), [])]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ClsError(f"{path} cannot be read as a CSV table: {error}.") from error
