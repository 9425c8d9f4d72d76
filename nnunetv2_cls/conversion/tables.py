"""Read CSV tables."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_cls.errors import ClsError


def read_table(
    path: Path, columns: Sequence[str], one_of: Sequence[str] = ()
) -> list[dict[str, str]]:
    """Read the named columns of a CSV file, without surrounding blanks.

    Of `one_of` at least one column is needed; those that are absent are read as empty.

    Raises
    ------
    ClsError
        If it cannot be read, or lacks a column.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if one_of and not set(one_of) & set(reader.fieldnames or ()):
                missing.append(" or ".join(one_of))
            if missing:
                raise ClsError(
                    f"{path} lacks the column {', '.join(missing)}: it has "
                    f"{', '.join(reader.fieldnames or ()) or 'none'}."
                )
            return [
                {name: (row.get(name) or "").strip() for name in (*columns, *one_of)}
                for row in reader
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ClsError(f"{path} cannot be read as a CSV table: {error}.") from error
