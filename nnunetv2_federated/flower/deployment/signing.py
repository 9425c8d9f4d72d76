"""The coordinator signs what sites are asked; sites answer nothing that is not signed.

Without Flower's commercial account system whoever reaches the SuperLink's control API can submit a
run. A signature makes such a run useless: no site takes part in it.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.flower.deployment.keyfiles import read_secret

SIGNATURE, SEQUENCE = "signature", "sequence"


class Sequence:
    """Numbers for signed messages, each larger than all before, also after a restart.

    A number is the time in microseconds, so a server restored from an older backup goes on above
    what its sites have seen, as long as its clock is right.
    """

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._last = 0
        self._lock = threading.Lock()

    def next(self) -> int:
        """Return the next number."""
        with self._lock:
            self._last = max(self._last + 1, self._clock() // 1000)
            return self._last


_SEQUENCE = Sequence()


@dataclass(frozen=True)
class Signed:
    """Content of a verified signature."""

    sequence: int
    digest: str
    """SHA-256 of what was signed."""


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """Read the coordinator's private key.

    Raises
    ------
    SettingsError
        If the file holds none, or others can read or replace it.
    """
    try:
        key = load_pem_private_key(read_secret(path), None)
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{path} cannot be read as the coordinator's key: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsError(f"{path} is not the key nnUNetv2_federated_provision made.")
    return key


def load_verifying_key(path: Path) -> Ed25519PublicKey:
    """Read the coordinator's public key.

    Raises
    ------
    SettingsError
        If the file holds none.
    """
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{path} cannot be read as the coordinator's public key: {error}"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise SettingsError(f"{path} is not the key nnUNetv2_federated_provision made.")
    return key


def sign(message: Message, key: Ed25519PrivateKey, sequence: int | None = None) -> None:
    """Add a signature to a message of the server.

    Parameters
    ----------
    message
        Changed in place.
    key
        The coordinator's.
    sequence
        Number of the message; ``None`` for the next one.
    """
    number = _SEQUENCE.next() if sequence is None else sequence
    signature = key.sign(_digest(message, number))
    message.content[SIGNATURE] = ConfigRecord({SIGNATURE: signature, SEQUENCE: number})


def verify(message: Message, key: Ed25519PublicKey) -> Signed:
    """Take the signature off a message.

    Returns
    -------
    Signed
        Number and hash of the message; the caller compares the number with those before.

    Raises
    ------
    SiteError
        If there is none, or it is not the coordinator's for this message, run and site.
    """
    record = message.content.config_records.get(SIGNATURE, ConfigRecord())
    signature, sequence = record.get(SIGNATURE), record.get(SEQUENCE)
    if SIGNATURE in message.content:
        del message.content[SIGNATURE]
    if not isinstance(signature, bytes) or type(sequence) is not int:
        raise SiteError("refused: the message is not signed by the coordinator")
    digest = _digest(message, sequence)
    try:
        key.verify(signature, digest)
    except InvalidSignature:
        raise SiteError(
            "refused: the signature is not the coordinator's for this message"
        ) from None
    return Signed(sequence, digest.hex())


def _digest(message: Message, sequence: int) -> bytes:
    """Hash everything that matters: for whom, when, what, and every record but the signature."""
    metadata = message.metadata
    digest = hashlib.sha256()
    for part in (metadata.run_id, metadata.dst_node_id, metadata.message_type, sequence):
        digest.update(f"{part}\n".encode())
    digest.update(hash_content(message.content))
    return digest.digest()


def hash_content(content: RecordDict) -> bytes:
    """Hash what a message says: every record but the signature."""
    digest = hashlib.sha256()
    for name in sorted(content):
        record = content[name]
        if name == SIGNATURE:
            continue
        if not isinstance(record, ArrayRecord):
            digest.update(f"{name} {record.object_id}\n".encode())
            continue
        # not by object_id: for that Flower would copy all weights into chunks first
        for key, array in record.items():
            what = [name, key, array.dtype, list(array.shape), array.stype, len(array.data)]
            digest.update(json.dumps(what).encode())
            digest.update(array.data)
    return digest.digest()
