"""The coordinator's signature of a release: Ed25519 of ``SHA256SUMS``, as OpenSSL checks it.

Of messages to sites the same key signs a hash of 32 bytes. ``SHA256SUMS`` is never as short, so
no signature of one can pass for one of the other.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.flower.deployment.server.credentials import COORDINATOR_KEY
from nnunetv2_federated.flower.deployment.signing import load_signing_key, load_verifying_key
from nnunetv2_federated.secure.public_keys import fingerprint


def coordinators_key(server: Path) -> Ed25519PrivateKey:
    """Return the key that signs ``SHA256SUMS``.

    Parameters
    ----------
    server
        Folder ``server`` that ``nnUNetv2_federated_provision`` made.

    Raises
    ------
    SettingsError
        If the coordinator's key is not there, or others can read it.
    """
    return load_signing_key(server / COORDINATOR_KEY)


def check_signature(content: bytes, signature: bytes | None, key: Path) -> str:
    """Check whose signature ``SHA256SUMS`` has; return the fingerprint of the key.

    Parameters
    ----------
    content
        Content of the file.
    signature
        Its signature; ``None`` if there is none.
    key
        File with the coordinator's public key.

    Raises
    ------
    SettingsError
        If there is no signature, it is not of this key and content, or the key cannot be read.
    """
    public = load_verifying_key(key)
    if signature is None:
        raise SettingsError("it is not signed, although --key was given")
    try:
        public.verify(signature, content)
    except InvalidSignature:
        raise SettingsError(
            f"its signature is not of the key {fingerprint(public)}, or it was changed since"
        ) from None
    return fingerprint(public)
