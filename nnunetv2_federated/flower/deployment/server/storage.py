"""What the SuperLink's database holds, whose it is, and whether there is room for more.

The SuperLink stores whatever a registered site sends. Here its SQLite file is looked at, and only
looked at, so that a run ends before its disk is full, and a site that fills it is found. The tables
are those of Flower 1.41 and 1.42 (``flwr.supercore.state.schema``).
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_federated.federation.errors import FederationError

_RESERVE = 64 * 2**20
"""Bytes that stay free: SQLite's log, the SuperLink's own tables, what comes between two looks."""
_LOG_SHARE = 0.5
"""SQLite's write-ahead log, relative to what is stored."""
_MEGABYTE = 2**20

# The size of a blob stands at the head of its row: no content is read for this.
_MESSAGES = """
WITH RECURSIVE part(message, id) AS (
    SELECT object_id, object_id FROM (
        SELECT object_id FROM objects EXCEPT SELECT child_id FROM object_children
    )
    UNION
    SELECT message, child_id FROM part JOIN object_children ON parent_id = id
)
SELECT message, coalesce(sum(length(content)), 0), (
    SELECT src_node_id FROM message_res WHERE message_id = message
)
FROM part JOIN objects ON object_id = id GROUP BY message
"""


@dataclass(frozen=True)
class Stored:
    """A message in the SuperLink's database."""

    bytes: int
    """Bytes of the parts that have come."""
    node: int | None
    """Node whose answer it is, until the server has fetched it; ``None`` for a question."""


class Storage:
    """The SuperLink's database, seen from outside.

    Parameters
    ----------
    file
        SQLite's; it need not be there yet.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def check_room(self, needed: int) -> None:
        """Check that the disk holds that much more, and a reserve.

        Parameters
        ----------
        needed
            Bytes that are about to be stored.

        Raises
        ------
        FederationError
            If it does not.
        """
        wanted = int(needed * (1 + _LOG_SHARE)) + _RESERVE
        if (room := self.room()) < wanted:
            raise FederationError(
                f"the disk of the SuperLink's database, {self._file.parent}, has room for "
                f"{room // _MEGABYTE} MB, and {wanted // _MEGABYTE} MB are needed: make room, or "
                "choose another place with --superlink-database. The same command goes on, a "
                "training with --c."
            )

    def room(self) -> int:
        """Return how many bytes can be stored still: on the disk, and in pages that are free."""
        return shutil.disk_usage(self._file.parent).free + self.reusable()

    def reusable(self) -> int:
        """Return the bytes of pages that are free: SQLite gives none back to the disk."""
        pages, size = (
            sum(int(row[0]) for row in self._query(f"PRAGMA {name}"))
            for name in ("freelist_count", "page_size")
        )
        return pages * size

    def messages(self) -> dict[str, Stored]:
        """Return what is stored, by the object that the message is; nothing while it is locked."""
        return {
            name: Stored(size, None if node is None else node % 2**64)
            for name, size, node in self._query(_MESSAGES)
        }

    def _query(self, text: str) -> list[tuple[Any, ...]]:
        """Ask; what cannot be read now is read at the next look."""
        try:
            where = f"{self._file.absolute().as_uri()}?mode=ro"
            with contextlib.closing(sqlite3.connect(where, uri=True)) as database:
                return database.execute(text).fetchall()
        except sqlite3.OperationalError:
            return []


@dataclass(frozen=True)
class Unwanted:
    """Content that should not be in the database."""

    sites: dict[int, int]
    """Bytes that a node stored beyond its answer, by node."""
    messages: list[str]
    """Messages of nodes that were not asked, or that stored too much."""


def find_unwanted(
    stored: Mapping[str, Stored],
    questions: Collection[str],
    answers: Mapping[str, int],
    most: Mapping[int, int],
) -> Unwanted:
    """Tell what belongs to the questions that are open from what does not.

    Parameters
    ----------
    stored
        Messages in the database, from :meth:`Storage.messages`.
    questions
        Messages that wait for an answer.
    answers
        Node of each answer of which the server knows that it is coming.
    most
        Bytes that the answer of each asked node can be at most.
    """
    sites: dict[int, int] = {}
    messages = []
    for name, message in stored.items():
        if name in questions:
            continue
        node = answers.get(name, message.node)
        if node is None or node not in most:
            messages.append(name)
        elif message.bytes > most[node]:
            sites[node] = message.bytes
            messages.append(name)
    return Unwanted(sites, messages)
