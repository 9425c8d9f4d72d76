"""Read CSV tables."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_cls.errors import ClsError


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read the named columns of a CSV file, without surrounding blanks.

    Raises
    ------
    ClsError
        If it cannot be read, or lacks a column.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise ClsError(
                    f"{path} lacks the column {', '.join(missing)}: it has "
                    f"{', '.join(reader.fieldnames or ()) or 'none'}."
                )
            return [{name: (row[name] or "").strip() for name in columns} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ClsError(f"{path} cannot be read as a CSV table: {error}.") from error
