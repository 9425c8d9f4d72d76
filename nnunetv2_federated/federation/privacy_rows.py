"""Rows of a privacy ledger, as they are counted and as they are stored.

Stored, each row contains the SHA-256 of the row before it, and a list of patients that many rows
have in common stands once, under its own hash. So a row, or a list, that was changed is noticed.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from nnunetv2_federated.federation.mechanism import Mechanism

START = "0" * 64
"""Hash that the first row has in place of the row before it."""


@dataclass(frozen=True)
class Row:
    """Noisy gradients of one round, and whose they are."""

    run: str
    """Identifier of the run, or the name of its folder."""
    round: int
    """Number of the round, from 0."""
    fold: str
    arm: str
    """Arm of a comparison, or what was tuned; empty for neither."""
    mechanism: Mechanism
    """Steps of the round, by the numbers they were done with."""
    patients: frozenset[str]
    """Patients that each step could have drawn."""
    digest: str
    """Hash of what was asked: the same question, asked again, is charged once."""
    date: str = ""
    """When it was charged (UTC); the ledger fills it in."""

    def same_question(self, other: Row) -> bool:
        """Whether both rows pay for the answer to one question."""
        return replace(self, date="") == replace(other, date="")


_Text = Annotated[str, Field(strict=True)]
_Whole = Annotated[int, Field(strict=True, ge=0)]
_Number = Annotated[float, Field(strict=True)]


@checked(config=ConfigDict(extra="forbid"))
class _StoredRow:
    """As :class:`Row`; the patients are named by the hash of their list."""

    run: _Text
    round: _Whole
    fold: _Text
    arm: _Text
    probability: _Number
    noise_multiplier: _Number
    steps: _Whole
    patients: _Text
    digest: _Text
    date: _Text
    previous: _Text


@checked(config=ConfigDict(extra="forbid"))
class _File:
    """What the file holds; it is checked as if it came from elsewhere."""

    dataset: _Text
    patients: dict[_Text, list[_Text]]
    """Lists of patients, each once, by their hash."""
    rows: list[_StoredRow]
    sha256: _Text
    """Hash of the last row."""


_FILE = TypeAdapter(_File)


class Rows:
    """Rows in the order in which they were charged, and the chain of their hashes.

    Parameters
    ----------
    dataset
        Name of the dataset that they are of.
    """

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset
        self.rows: list[Row] = []
        self.hashes = [START]
        """Hash before each row, and behind the last one."""

    def add(self, row: Row) -> None:
        """Add a row behind the last one."""
        self.hashes.append(_hash(asdict(_pack(row, self.hashes[-1]))))
        self.rows.append(row)

    def as_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` reads."""
        packed = zip(self.rows, self.hashes[:-1], strict=True)
        return {
            "dataset": self.dataset,
            "patients": {_hash_patients(p): sorted(p) for p in {row.patients for row in self.rows}},
            "rows": [asdict(_pack(row, previous)) for row, previous in packed],
            "sha256": self.hashes[-1],
        }

    @classmethod
    def from_json(cls, content: object) -> Rows:
        """Read and check rows.

        Raises
        ------
        ValueError
            If a field is missing, of another type, or was changed.
        SettingsError
            If a number is none that a row can have.
        """
        file = _FILE.validate_python(content)
        sets = {name: frozenset(listed) for name, listed in file.patients.items()}
        if any(_hash_patients(patients) != name for name, patients in sets.items()):
            raise ValueError("a list of patients was changed")
        rows = cls(file.dataset)
        for stored in file.rows:
            if stored.previous != rows.hashes[-1] or stored.patients not in sets:
                raise ValueError("a row does not follow the row before it")
            rows.add(_unpack(stored, sets))
        if file.sha256 != rows.hashes[-1]:
            raise ValueError("the last row was changed")
        return rows


def _pack(row: Row, previous: str) -> _StoredRow:
    return _StoredRow(
        **{name: getattr(row, name) for name in ("run", "round", "fold", "arm", "digest", "date")},
        **asdict(row.mechanism),
        patients=_hash_patients(row.patients),
        previous=previous,
    )


def _unpack(stored: _StoredRow, sets: Mapping[str, frozenset[str]]) -> Row:
    return Row(
        run=stored.run,
        round=stored.round,
        fold=stored.fold,
        arm=stored.arm,
        mechanism=Mechanism(stored.probability, stored.noise_multiplier, stored.steps),
        patients=sets[stored.patients],
        digest=stored.digest,
        date=stored.date,
    )


@functools.lru_cache(maxsize=256)  # many rows have the same patients
def _hash_patients(patients: frozenset[str]) -> str:
    return _hash(sorted(patients))


def _hash(content: object) -> str:
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
