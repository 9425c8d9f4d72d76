"""Public keys of sites and of the coordinator, as a line of text and as a fingerprint."""

from __future__ import annotations

import base64
import hashlib
from typing import cast

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
"""Public key of a site, or of the coordinator."""

_KINDS = ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")
"""Types of keys that Flower accepts; certificates and security tokens have other names."""


def parse_public_key(line: bytes) -> ec.EllipticCurvePublicKey:
    """Read a site's public key from a line in OpenSSH's format; what follows the key is ignored.

    Raises
    ------
    ValueError
        If it is not an ECDSA key on a NIST curve: Flower takes no other.
    """
    words = line.split()
    if len(words) < 2 or words[0] not in [kind.encode() for kind in _KINDS]:
        raise ValueError(f"not one of {', '.join(_KINDS)}")
    try:
        key = load_ssh_public_key(b" ".join(words[:2]))
    except UnsupportedAlgorithm as error:
        raise ValueError("not a key that is supported here") from error
    return cast(ec.EllipticCurvePublicKey, key)


def public_line(key: PublicKey, comment: str = "") -> bytes:
    """Return a public key in OpenSSH's format, as one line with its end."""
    line = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return b" ".join([line, comment.encode()]).strip() + b"\n"


def fingerprint(key: PublicKey) -> str:
    """Return what ``ssh-keygen -lf`` shows of a key: SHA-256 of its binary form, in base64."""
    binary = base64.b64decode(public_line(key).split()[1])
    return f"SHA256:{base64.b64encode(hashlib.sha256(binary).digest()).decode().rstrip('=')}"
