"""Masks: AES-256 in counter mode, added to integers that wrap around, a block at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from nnunetv2_federated.secure.arithmetic import Ring, Tail
from nnunetv2_federated.secure.keys import MaskKeys

Words: TypeAlias = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]
"""Integers of 32 or 64 bits, shape (values,)."""
Adder: TypeAlias = Callable[[Words, bytes, int], None]
"""Adds a key's stream to integers in place, or subtracts it: values, key, 1 or -1."""

_BLOCK = 1 << 19
"""Bytes of a key's stream that are made at a time."""
_ZEROS = bytes(_BLOCK)
_ROOM = 15
"""Bytes that a cipher may want beyond its output."""


def add_stream(values: Words, key: bytes, sign: int) -> None:
    """Add the stream of a key to integers in place; it is the same on every machine.

    Parameters
    ----------
    values
        Changed in place; they wrap around.
    key
        32 bytes. It is used for one vector only: the stream begins at its start.
    sign
        1 to add, -1 to subtract.
    """
    cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    dtype = values.dtype.newbyteorder("<")
    buffer = bytearray(min(_BLOCK, values.nbytes) + _ROOM)
    change = np.add if sign > 0 else np.subtract
    for start in range(0, values.size, _BLOCK // values.itemsize):
        part = values[start : start + _BLOCK // values.itemsize]
        cipher.update_into(memoryview(_ZEROS)[: part.nbytes], buffer)
        change(part, np.frombuffer(buffer, dtype, part.size), out=part)


def sign_of(name: str, other: str) -> int:
    """Return whether a site adds the mask that it shares with another, or subtracts it."""
    return 1 if name < other else -1


def masks_of(name: str, own: MaskKeys, pairs: Mapping[str, MaskKeys]) -> list[tuple[int, MaskKeys]]:
    """Return what a site puts on: its own mask, and those that it shares with others by name."""
    return [(1, own), *((sign_of(name, other), keys) for other, keys in pairs.items())]


def put_on(
    vector: Ring, tail: Tail, masks: Iterable[tuple[int, MaskKeys]], add: Adder = add_stream
) -> None:
    """Add masks to a vector and its tail, in place.

    Parameters
    ----------
    vector, tail
        Changed in place.
    masks
        Sign and keys of each; the reverse sign takes a mask off.
    add
        Adds the stream of one key.
    """
    for sign, keys in masks:
        add(vector, keys.vector, sign)
        add(tail, keys.tail, sign)
