"""A chain of JSON lines in a file, and its head in another: whether they hold together.

Each line has its ``number``, the ``time`` (UTC), the SHA-256 of the whole line before it
(``previous``), an ``event`` and what belongs to it. The head has the number and SHA-256 of the last
line, and where it ends, so that an end that was cut off is noticed as well.

Lines are written before the head. Beyond what the head knows there can therefore be one whole line,
or half of one, where a process was killed or the power was cut; anything else is a broken chain.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

from nnunetv2_federated.federation.errors import CheckpointError
from nnunetv2_federated.federation.files import format_problem, read_state, write_state
from nnunetv2_federated.federation.text import clean

Value = str | int | float | bool | None

FORMAT = 1
START = "0" * 64
"""Hash that the first line has in place of the line before it."""

LONGEST_LINE = 32 * 1024
"""Bytes of a line, with its end."""

OWN_FIELDS = frozenset(("format", "number", "time", "previous", "event"))
"""Fields that every line has; the format is in the first one only."""

_LARGEST_FORMAT = 10**6
_LOCK_SECONDS = 30.0
_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Line:
    """A line of a chain, and what is wrong with it."""

    number: int
    """Counted in the file, from 1."""
    sha256: str
    """SHA-256 of the line with its end, in hex."""
    size: int
    """Bytes of the line with its end."""
    entry: Mapping[str, Value]
    """Fields of the line; empty if it cannot be read."""
    problem: str = ""
    """Reason why it does not continue the line before; empty if it does."""
    suspect: int = 0
    """The first line that cannot be trusted, if there is a problem: this one, or the one before."""
    half: bool = False
    """Whether it looks like a line that a power cut interrupted."""

    @property
    def event(self) -> str:
        """Event that the line records."""
        return str(self.entry["event"])

    @property
    def moment(self) -> datetime:
        """When it was recorded, in UTC."""
        return datetime.fromisoformat(str(self.entry["time"]))

    @property
    def fields(self) -> dict[str, Value]:
        """Fields that belong to the event."""
        return {name: value for name, value in self.entry.items() if name not in OWN_FIELDS}


@dataclass(frozen=True)
class Head:
    """The last line of a chain."""

    lines: int = 0
    sha256: str = START
    """SHA-256 of the last line with its end, in hex."""
    size: int = 0
    """Bytes of all lines."""

    def after(self, line: bytes) -> Head:
        """Return the head of the chain with one more line."""
        return Head(self.lines + 1, sha256(line), self.size + len(line))

    def write(self, path: Path) -> None:
        """Replace the head of the chain in a file."""
        write_state(head_path(path), asdict(self), FORMAT)


@dataclass(frozen=True)
class Report:
    """Whether a chain and its head hold together."""

    lines: int
    """Number of lines that continue each other, from the first on."""
    sha256: str
    """SHA-256 of the last of them, in hex: the head, to be noted."""
    problem: str = ""
    """The first thing that is wrong; empty if nothing is."""
    bad_line: int | None = None
    """Number of the first line that is missing or cannot be trusted; ``None`` for the head."""
    note: str = ""
    """What an interrupted process left for the next one to repair; empty if nothing."""


class BrokenChainError(Exception):
    """A chain is not what its head says."""


def check(path: Path) -> Report:
    """Read a whole chain and its head, and say whether they hold together.

    Parameters
    ----------
    path
        The chain. Where neither it nor a head exists nothing is wrong.

    Raises
    ------
    CheckpointError
        If it cannot be read, or another process holds it.
    """
    try:
        head, size = _snapshot(path)
    except BrokenChainError as error:
        return Report(0, START, str(error))
    lines, last, end = 0, START, 0
    for line in read(path, min(size, head.size)):
        if line.problem:
            return Report(lines, last, line.problem, line.suspect)
        lines, last, end = line.number, line.sha256, end + line.size
    if Head(lines, last, end) == head:
        return _check_rest(path, head, size)
    if lines < head.lines:
        problem = f"line {lines + 1} is missing: the head knows {head.lines} lines"
        return Report(lines, last, problem, lines + 1)
    return Report(lines, last, f"line {lines} is not the one the head knows", lines)


def read(path: Path, size: int | None = None) -> Iterator[Line]:
    """Yield the lines of a chain, also those with a problem.

    Parameters
    ----------
    path
        The chain.
    size
        Bytes to read; all there are if ``None``.

    Raises
    ------
    CheckpointError
        If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            yield from _lines(file, os.fstat(file.fileno()).st_size if size is None else size)
    except FileNotFoundError:
        return
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _lines(file: BinaryIO, left: int) -> Iterator[Line]:
    number, previous = 1, START
    while left > 0:
        kept = part = file.readline(min(left, LONGEST_LINE + 1))
        digest, size = hashlib.sha256(part), len(part)
        while part and not part.endswith(b"\n") and size < left:  # too long: it is not kept
            part = file.readline(min(left - size, LONGEST_LINE))
            digest.update(part)
            size += len(part)
        if not size:
            return
        line = _parse(kept, digest.hexdigest(), size, number, previous)
        yield line
        number, previous, left = number + 1, line.sha256, left - size


def _check_rest(path: Path, head: Head, size: int) -> Report:
    if size == head.size:
        return Report(head.lines, head.sha256)
    with path.open("rb", buffering=0) as file:
        length = min(size - head.size, LONGEST_LINE + 1)
        line = parse_rest(read_part(file.fileno(), head.size, length), head)
    if line.half:
        note = f"line {line.number} was interrupted, and will be replaced"
        return Report(head.lines, head.sha256, note=note)
    if line.problem:
        return Report(head.lines, head.sha256, line.problem, line.number)
    return Report(line.number, line.sha256, note=f"line {line.number} is not in the head yet")


def read_head(path: Path) -> Head | None:
    """Read the head of the chain in a file; ``None`` if there is none.

    Raises
    ------
    BrokenChainError
        If it is damaged.
    """
    file = head_path(path)
    try:
        content = read_state(file, FORMAT, "it belongs to the chain")
    except CheckpointError as error:
        raise BrokenChainError(str(error).rstrip(".")) from error
    if content is None:
        return None
    kinds = {name: type(value) for name, value in content.items()}
    if kinds != {"lines": int, "sha256": str, "size": int}:
        raise BrokenChainError(f"{file.name} is damaged")
    return Head(**content)


def head_path(path: Path) -> Path:
    """Return the file with the head of the chain in a file: beside it."""
    return path.with_name(f"{path.stem}.head.json")


def parse_rest(rest: bytes, head: Head) -> Line:
    """Read what a chain has beyond its head: at most one line may be there, whole or half.

    Parameters
    ----------
    rest
        The first ``LONGEST_LINE + 1`` bytes of it, or all of it.
    head
        Head of the chain.
    """
    line = _parse(rest, sha256(rest), len(rest), head.lines + 1, head.sha256)
    if line.problem and not line.half:
        problem = f"from line {line.number} on there is what the head does not know"
        return Line(line.number, line.sha256, line.size, {}, problem, line.number)
    return line


def check_end(file: int, head: Head) -> None:
    """Raise ``BrokenChainError`` if a chain does not have its head's line where that says.

    Parameters
    ----------
    file
        Descriptor of the chain; no more than one line of it is read.
    head
        Head of the chain.
    """
    start = max(0, head.size - LONGEST_LINE)
    last = read_part(file, start, head.size - start)
    line = last[last[:-1].rfind(b"\n") + 1 :]
    if len(last) < head.size - start:
        raise BrokenChainError(f"its end was cut off: the head knows {head.lines} lines")
    if (sha256(line) if line else START) != head.sha256:
        raise BrokenChainError(f"line {head.lines} is not the one the head knows")


def sha256(line: bytes) -> str:
    """Return the hash of a line with its end, in hex: what ``sha256sum`` prints for it."""
    return hashlib.sha256(line).hexdigest()


def read_part(file: int, start: int, length: int) -> bytes:
    """Read from a place in an open file, less where it ends."""
    os.lseek(file, start, os.SEEK_SET)
    found = b""
    while len(found) < length and (part := os.read(file, length - len(found))):
        found += part
    return found


@contextlib.contextmanager
def locked(path: Path, flags: int) -> Iterator[int]:
    """Open a chain, not through a link, and keep other processes from appending.

    Parameters
    ----------
    path
        The chain.
    flags
        Flags of ``os.open``. A file that is created is for this user only.

    Raises
    ------
    OSError
        If it cannot be opened.
    CheckpointError
        If another process holds it for too long.
    """
    safe = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)  # not on every system
    file = os.open(path, flags | safe, 0o600)
    try:
        if sys.platform == "win32":
            yield file
            return
        import fcntl  # noqa: PLC0415  # not on Windows

        _wait_for(file, path)
        try:
            yield file
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # a child forked meanwhile would go on holding it
    finally:
        os.close(file)


def _wait_for(file: int, path: Path) -> None:
    if sys.platform == "win32":
        return
    import fcntl  # noqa: PLC0415  # not on Windows

    end = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > end:
                raise CheckpointError(
                    f"{path} has been held for {_LOCK_SECONDS:g} s by another process that stands "
                    "still: end that one."
                ) from error
            time.sleep(_LOOK_SECONDS)
        else:
            return


def _snapshot(path: Path) -> tuple[Head, int]:
    """Return the head, and how long the chain was at that moment."""
    try:
        with locked(path, os.O_RDONLY) as file:
            head, size = read_head(path), os.fstat(file).st_size
    except FileNotFoundError:
        head, size = read_head(path), 0
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error}") from error
    if head is None and size:
        raise BrokenChainError(f"{head_path(path).name} is missing")
    return head or Head(), size


def _parse(raw: bytes, digest: str, size: int, number: int, previous: str) -> Line:
    """Read one line, which should have this number and follow the line with hash ``previous``."""
    single = size <= LONGEST_LINE and raw.find(b"\n") in (-1, size - 1)
    if single and (not raw.endswith(b"\n") or b"\0" in raw):
        # zeros: a power cut may let a file have its new length, but not the content
        return Line(number, digest, size, {}, f"line {number} is not whole", number, half=True)
    entry = _entry(raw) if single else None
    if entry is None:
        return Line(number, digest, size, {}, f"line {number} cannot be read", number)
    problem, suspect = _discontinuity(entry, number, previous)
    return Line(number, digest, size, entry, problem, suspect)


def _discontinuity(entry: Mapping[str, Value], number: int, previous: str) -> tuple[str, int]:
    """Say why an entry does not continue the chain, and the first line that cannot be trusted."""
    if number == 1 and entry.get("format") != FORMAT:
        return f"line 1 has {_unknown_format(entry.get('format'))}", number
    if entry["number"] != number:
        return f"line {number} has another number, {clean(entry['number'], 20)}", number
    if entry["previous"] != previous:  # either of the two lines may have been changed
        return f"line {number} does not follow the line before it", max(1, number - 1)
    return "", 0


def _unknown_format(found: Value) -> str:
    if type(found) is not int or not 0 < found < _LARGEST_FORMAT:
        return "no format number"
    return format_problem(found, FORMAT, "this installation").rstrip(".")


def _entry(raw: bytes) -> dict[str, Value] | None:
    """Return what a line says, or ``None`` if it is not an entry."""
    try:
        entry: Any = json.loads(raw)
        is_entry = (
            type(entry["number"]) is int
            and type(entry["previous"]) is str
            and type(entry["event"]) is str
            and datetime.fromisoformat(entry["time"]).utcoffset() == timedelta(0)
            and all(isinstance(value, Value) for value in entry.values())
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return entry if is_entry else None
