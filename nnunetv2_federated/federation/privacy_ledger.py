"""A site's privacy ledger: which patients of a dataset paid for which noisy gradients, for good.

One private JSON file for a dataset, over all its runs, folds, arms of comparisons and tuned
settings. A row is on the disk before the answer that it pays for may leave, so a kill or a power
cut never lowers what is spent.

A second file, the head, has the number and the hash of the last row. A ledger that was changed, is
gone, or was put back from a backup without its head is therefore refused, never taken for an empty
one. Whoever may write both files can replace both by older ones: against that helps the audit log.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from nnunetv2_federated.federation.errors import CheckpointError, SettingsError
from nnunetv2_federated.federation.files import (
    private_folder,
    read_state,
    wait_for_turn,
    write_state,
)
from nnunetv2_federated.federation.privacy_rows import Row, Rows

_FORMAT = 1
_REMEDY = (
    "nothing is trained on its patients until the site's engineer has looked. Put the ledger and "
    "its head back together, from a backup made after the last training; without one nobody knows "
    "what is spent, and these patients should not be trained on again"
)


class PrivacyLedger:
    """Keeps the rows of a dataset on the disk; any number of processes may charge it.

    Parameters
    ----------
    path
        The JSON file. It and its folder are made with the first row, for this user only.
    dataset
        Name of the dataset, such as ``Dataset501_Name``.
    """

    def __init__(self, path: Path, dataset: str) -> None:
        self._path = path
        self._head = path.with_name(f"{path.stem}.head.json")
        self._dataset = dataset

    def rows(self) -> tuple[Row, ...]:
        """Return all rows, the oldest first; none if nothing was ever charged.

        Raises
        ------
        CheckpointError
            If the ledger is damaged, was changed, is gone, or is of another dataset or format.
        """
        return tuple(self._read().rows)

    def charge(self, row: Row, check: Callable[[Sequence[Row]], None] | None = None) -> bool:
        """Add a row, unless the answer to the same question was paid for before.

        The row is on the disk when this returns: only then may the answer leave. Where an answer
        that may have left is computed anew with other noise, the digest must be another one.

        Parameters
        ----------
        row
            What is to be paid for, with the number of steps that will be done at most.
        check
            Is given the rows so far, while no other process can add one, and raises an error if
            this one must not be added.

        Returns
        -------
        bool
            Whether the row was added.

        Raises
        ------
        CheckpointError
            As :meth:`rows`.
        OSError
            If it cannot be written. The row may be there or not; nothing may be sent.
        """
        private_folder(self._path.parent)
        with wait_for_turn(self._path.with_suffix(".lock")):
            rows = self._read()
            if any(row.same_question(paid) for paid in rows.rows):
                return False
            if check is not None:
                check(tuple(rows.rows))
            if not rows.rows:  # before the first row: a ledger without a head is never ours
                self._write_head(rows)
            rows.add(replace(row, date=datetime.now(UTC).isoformat(timespec="seconds")))
            write_state(self._path, rows.as_json(), _FORMAT)
            self._write_head(rows)
        return True

    def _write_head(self, rows: Rows) -> None:
        write_state(self._head, asdict(_Head(len(rows.rows), rows.hashes[-1])), _FORMAT)

    def _read(self) -> Rows:
        """Read the rows; there may be more than the head knows, where a process was killed."""
        head = self._read_head()  # before the rows: another process may add one meanwhile
        found = read_state(self._path, _FORMAT, _REMEDY)
        if found is None:
            if head is not None and head.rows:
                raise self._broken(f"is gone: {self._head.name} knows {head.rows} rows")
            return Rows(self._dataset)
        head = head or self._read_head()  # it may be new
        if head is None:
            raise self._broken(f"has lost {self._head.name}, which belongs to it")
        with self._refusing(self._path):
            rows = Rows.from_json(found)
        if rows.dataset != self._dataset:
            raise self._broken(f"is of {rows.dataset}, not of {self._dataset}")
        if rows.hashes[head.rows : head.rows + 1] != [head.sha256]:
            raise self._broken(
                f"is not the one that {self._head.name} knows, which has {head.rows} rows: one of "
                "them was changed, or is an older one"
            )
        return rows

    def _read_head(self) -> _Head | None:
        found = read_state(self._head, _FORMAT, _REMEDY)
        if found is None:
            return None
        with self._refusing(self._head):
            return _HEAD.validate_python(found)

    @contextlib.contextmanager
    def _refusing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except (ValueError, SettingsError) as error:  # pydantic's are of the first kind
            raise self._broken("is damaged or was changed", path) from error

    def _broken(self, problem: str, path: Path | None = None) -> CheckpointError:
        return CheckpointError(f"privacy ledger {path or self._path} {problem}: {_REMEDY}")


@dataclass(config=ConfigDict(extra="forbid"), frozen=True)
class _Head:
    rows: Annotated[int, Field(strict=True, ge=0)]
    sha256: Annotated[str, Field(strict=True)]


_HEAD = TypeAdapter(_Head)
