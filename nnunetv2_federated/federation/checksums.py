"""``SHA256SUMS``: the hash of each file of a folder, as ``sha256sum -c`` reads it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import IO

CHECKSUMS_FILE = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_BLOCK = 2**20


def hash_file(file: IO[bytes]) -> str:
    """Return the SHA-256 of what is left of an open file, in hexadecimal digits."""
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def write_checksums(hashes: Mapping[str, str]) -> str:
    """Return the text of ``SHA256SUMS``, in the order of the names.

    Parameters
    ----------
    hashes
        SHA-256 of each file, by its path relative to ``SHA256SUMS``.

    Raises
    ------
    ValueError
        If a name has a line break or a backslash, which coreutils would write otherwise.
    """
    for name in hashes:
        if any(sign in name for sign in "\\\n\r"):
            raise ValueError(f"{name!r} has a backslash or a line break")
    return "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))


def read_checksums(text: str) -> dict[str, str]:
    """Return the SHA-256 of each file, by its path.

    Raises
    ------
    ValueError
        If a line is of another form, or a file is named twice.
    """
    hashes: dict[str, str] = {}
    for number, line in enumerate(text.split("\n")[:-1] if text.endswith("\n") else [text], 1):
        match = _LINE.fullmatch(line)
        if match is None or match[2] in hashes:
            raise ValueError(f"line {number} is no hash of a file, or of one named before")
        hashes[match[2]] = match[1]
    return hashes
