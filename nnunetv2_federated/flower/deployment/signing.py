"""The coordinator signs what sites are asked; sites answer nothing that is not signed.

Without Flower's commercial account system whoever reaches the SuperLink's control API can submit a
run. A signature makes such a run useless: no site takes part in it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from flwr.app import ArrayRecord, ConfigRecord, Message

from nnunetv2_federated.federation.errors import SettingsError, SiteError

SIGNATURE = "signature"


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """Read the coordinator's private key.

    Raises
    ------
    SettingsError
        If the file holds none.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
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


def sign(message: Message, key: Ed25519PrivateKey) -> None:
    """Add a signature to a message of the server."""
    content = message.content
    content[SIGNATURE] = ConfigRecord({SIGNATURE: key.sign(_digest(message))})


def verify(message: Message, key: Ed25519PublicKey) -> None:
    """Take the signature off a message.

    Raises
    ------
    SiteError
        If there is none, or it is not the coordinator's for this message, run and site.
    """
    record = message.content.config_records.get(SIGNATURE, ConfigRecord())
    signature = record.get(SIGNATURE)
    if SIGNATURE in message.content:
        del message.content[SIGNATURE]
    if not isinstance(signature, bytes):
        raise SiteError("refused: the message is not signed by the coordinator")
    try:
        key.verify(signature, _digest(message))
    except InvalidSignature:
        raise SiteError(
            "refused: the signature is not the coordinator's for this message"
        ) from None


def _digest(message: Message) -> bytes:
    """Hash everything that matters: for whom, what, and every record but the signature."""
    metadata = message.metadata
    digest = hashlib.sha256()
    for part in (metadata.run_id, metadata.dst_node_id, metadata.message_type):
        digest.update(f"{part}\n".encode())
    for name in sorted(message.content):
        record = message.content[name]
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
