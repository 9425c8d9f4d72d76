"""A site's audit log: what was asked, what was agreed to, and what left.

A chain of lines (:mod:`~nnunetv2_federated.federation.chain`) that only grows. Whoever may write
the site's files can replace all of it by another that holds together; against that helps a head
that was noted somewhere else.

A line is on the disk before the head names it, and the head before :meth:`AuditLog.record`
returns. After a kill or a power cut in between, the next record takes a whole line up, and replaces
half a line by one that says so (``repaired``). Nothing else is repaired.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from nnunetv2_federated.federation.chain import (
    FORMAT,
    LONGEST_LINE,
    OWN_FIELDS,
    BrokenChainError,
    Head,
    Value,
    check,
    check_end,
    head_path,
    locked,
    parse_rest,
    read_head,
    read_part,
)
from nnunetv2_federated.federation.errors import CheckpointError
from nnunetv2_federated.federation.files import private_folder
from nnunetv2_federated.federation.text import clean

AUDIT_FILE = "audit.jsonl"

EVENTS = {
    "started": "the site's process began: dataset, version",
    "stopped": "the site's process ended; one that was killed records nothing",
    "proposed": "a planning, federation or evaluation came that is not approved yet: what, sha256",
    "approved": "somebody agreed to it: what, sha256, how",
    "withdrawn": "somebody took an approval back: what, sha256",
    "asked": "a message of the coordinator came: message, run, round, sequence, bytes, sha256, by",
    "refused": "a message was refused: message, run, reason",
    "left": "an answer, recorded before it is sent: message, run, round, bytes, sha256",
    "rewound": "the site's engineer let a run go back: run, round",
    "charged": "the privacy ledger counts a round, before its training: round, epsilon, delta",
    "spent": "a limit was reached: limit, most",
    "repaired": "half a line that a power cut had left was taken away: bytes, sha256",
}
"""Events, and what is recorded of each.

``message`` is the type of a message, such as ``train``; ``bytes`` and ``sha256`` are of what came,
left or was agreed to; ``by`` is the fingerprint of the key that signed.
"""

_MOST_FIELDS = 20
_LONGEST_NAME = 40
_LARGEST = 2**64


class AuditLog:
    """Appends to a log, from any number of processes at a time.

    The whole log is read once, here; a record reads only its end.

    Parameters
    ----------
    path
        The log. It and its folder are made with the first record, for this user only.

    Raises
    ------
    CheckpointError
        If the log does not hold together, or cannot be read; says what to do.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        problem = check(path).problem
        if problem:
            raise self._broken(problem)

    def record(self, event: str, **fields: Value) -> None:
        """Append a line; it is on the disk when this returns.

        Parameters
        ----------
        event
            One of :data:`EVENTS`.
        **fields
            What belongs to it. A text becomes one line of at most 300 characters; a number that is
            not finite, or needs more than 64 bits, becomes a text.

        Raises
        ------
        CheckpointError
            If the end of the log is not what its head says, or another process holds the log.
        OSError
            If it cannot be written, for instance because the disk is full. The log is then as it
            was, or has the line; either way the next record goes on from there.
        """
        content = _content(event, fields)
        private_folder(self._path.parent)
        with locked(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT) as file:
            self._path.chmod(0o600)
            try:
                head = self._settled(file)
            except BrokenChainError as error:
                raise self._broken(str(error)) from error
            self._append(file, head, content)

    def _append(self, file: int, head: Head, content: Mapping[str, Value]) -> Head:
        line = _encode(head, content)
        try:
            _write(file, line)
            os.fsync(file)
        except BaseException:
            with contextlib.suppress(OSError):  # the next record would take the rest away
                os.ftruncate(file, head.size)
            raise
        return self._move(head, line)

    def _settled(self, file: int) -> Head:
        """Return the head of the log, after repairing what an interrupted record left."""
        head = read_head(self._path)
        if head is None:
            if os.fstat(file).st_size:
                raise BrokenChainError(f"{head_path(self._path).name} is missing")
            head = Head()
            head.write(self._path)  # before the first line: a log without a head is never ours
        check_end(file, head)
        rest = read_part(file, head.size, LONGEST_LINE + 1)
        if not rest:
            return head
        line = parse_rest(rest, head)
        if line.half:
            os.ftruncate(file, head.size)
            found: dict[str, Value] = {"bytes": line.size, "sha256": line.sha256}
            return self._append(file, head, _content("repaired", found))
        if line.problem:
            raise BrokenChainError(line.problem)
        os.fsync(file)  # a head is never ahead of its log
        return self._move(head, rest)

    def _move(self, head: Head, line: bytes) -> Head:
        head = head.after(line)
        head.write(self._path)
        return head

    def _broken(self, problem: str) -> CheckpointError:
        log, head = self._path, head_path(self._path).name
        return CheckpointError(
            f"audit log {log} is broken: {problem}. Nothing is recorded, and so nothing answered, "
            f"until the site's engineer has looked: move {log.name} and {head} away, both and "
            "unchanged, for the data protection officer; a new log then begins."
        )


def _content(event: str, fields: Mapping[str, Value]) -> dict[str, Value]:
    if event not in EVENTS:
        raise ValueError(f"{event} is no event; known are {', '.join(EVENTS)}")
    bad = [n for n in fields if n in OWN_FIELDS or not n.isidentifier() or len(n) > _LONGEST_NAME]
    if bad or len(fields) > _MOST_FIELDS:
        raise ValueError(f"{event}: not these fields: {', '.join(bad or fields)}")
    return {"event": event} | {name: _plain(value) for name, value in fields.items()}


def _plain(value: object) -> Value:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < _LARGEST else "a number of more than 64 bits"
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return clean(value)
    raise TypeError(f"{type(value).__name__} cannot be recorded: give a text, a number or a bool")


def _encode(head: Head, content: Mapping[str, Value]) -> bytes:
    entry = {
        **({"format": FORMAT} if head.lines == 0 else {}),
        "number": head.lines + 1,
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "previous": head.sha256,
        **content,
    }
    return json.dumps(entry, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _write(file: int, line: bytes) -> None:
    while line:
        line = line[os.write(file, line) :]
