"""The texts inside files of any kind: JSON, checkpoints of torch, and whatever else has bytes.

Nothing is unpickled: of a pickle only the texts that its opcodes carry are read.
"""

from __future__ import annotations

import json
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_CHUNK = 2**24
_RUN = re.compile(rb"[\x20-\x7e]{6,}")
_LAST_RUN = re.compile(rb"[\x20-\x7e]*\Z")
_LONGEST_RUN = 4096
_TEXTS = (".md", ".txt", "SHA256SUMS")


def strings_inside(path: Path) -> Iterator[str]:
    """Yield the texts in a file; of a zip those of its members, and their names.

    Parameters
    ----------
    path
        File of any kind. Of JSON, text and pickles all is found, of others each run of at least six
        printable ASCII characters.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                yield member.filename
                with archive.open(member) as file:
                    yield from _of_file(member.filename, file)
        return
    with path.open("rb") as file:
        yield from _of_file(path.name, file)


def _of_file(name: str, file: IO[bytes]) -> Iterator[str]:
    if name.endswith(".json"):
        yield from strings_in_json(json.load(file))
    elif name.endswith(".pkl"):
        yield from _of_pickle(file.read())
    elif name.endswith(_TEXTS):
        yield file.read().decode("utf-8", "replace")
    else:
        yield from _of_bytes(file)


def strings_in_json(value: object) -> Iterator[str]:
    """Yield the keys and texts of what JSON was read to."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from strings_in_json(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings_in_json(item)


def _of_pickle(content: bytes) -> Iterator[str]:
    for _, argument, _ in pickletools.genops(content):
        if isinstance(argument, str):
            yield argument
        elif isinstance(argument, bytes | bytearray):
            yield bytes(argument).decode("utf-8", "replace")


def _of_bytes(file: IO[bytes]) -> Iterator[str]:
    """Yield runs of printable bytes; one that a chunk cuts is put together again."""
    rest = b""
    while chunk := file.read(_CHUNK):
        block = rest + chunk
        cut = len(block) - len(_LAST_RUN.findall(block[-_LONGEST_RUN:])[0])
        for run in _RUN.finditer(block, 0, cut):
            yield run[0].decode("ascii")
        rest = block[cut:]
    for run in _RUN.finditer(rest):
        yield run[0].decode("ascii")
