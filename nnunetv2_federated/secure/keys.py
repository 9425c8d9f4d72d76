"""Keys of one attempt at a round: secrets, what follows from them, and what two sites agree on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.secure.messages import canonical

SECRET_BYTES = 16
"""Length of a secret, and of a share of it."""
_KEY_BYTES = 32
_PREFIX = b"nnunetv2-federated secure aggregation v1\n"


_PRIME = 2**255 - 19
"""Of the field that X25519 computes in."""


def derive(secret: bytes, *labels: str) -> bytes:
    """Return a key of 32 bytes that follows from a secret (HKDF, SHA-256), one for each label."""
    info = _PREFIX + canonical(list(labels))
    return HKDF(hashes.SHA256(), _KEY_BYTES, salt=None, info=info).derive(secret)


def private_key(secret: bytes) -> X25519PrivateKey:
    """Return the X25519 key that follows from a secret."""
    return X25519PrivateKey.from_private_bytes(derive(secret, "x25519"))


def public_hex(secret: bytes) -> str:
    """Return the public key to a secret, in hexadecimal digits."""
    return private_key(secret).public_key().public_bytes_raw().hex()


def commitment(secret: bytes) -> str:
    """Return the SHA-256 of a secret, in hexadecimal digits."""
    return hashlib.sha256(secret).hexdigest()


def agree(secret: bytes, other: str, name: str) -> bytes:
    """Return the secret that two sites share, as either of them computes it.

    Parameters
    ----------
    secret
        Secret of one of them.
    other
        Public key of the other one, in hexadecimal digits.
    name
        Name of the other one, for the message.

    Raises
    ------
    SiteError
        If the key is one that leads to the same secret with everybody.
    """
    try:
        return private_key(secret).exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(other)))
    except ValueError:
        raise SiteError(f"refused: the key that {name} has stated is none") from None


def check_key(public: str, name: str) -> None:
    """Raise ``SiteError`` if a public key leads to the same secret with everybody.

    A key has one spelling (RFC 7748, section 5): so no two sites can have stated the same one.
    """
    if int.from_bytes(bytes.fromhex(public), "little") >= _PRIME:
        raise SiteError(f"refused: the key that {name} has stated is not in its usual form")
    agree(bytes(SECRET_BYTES), public, name)


@dataclass(frozen=True)
class MaskKeys:
    """Keys of one mask: for the vector, and for the tail beside it."""

    vector: bytes
    tail: bytes

    @classmethod
    def of_self(cls, secret: bytes, context: str) -> MaskKeys:
        """Return the keys of a site's own mask."""
        return cls(*(derive(secret, f"self {part}", context) for part in ("vector", "tail")))

    @classmethod
    def of_pair(cls, agreed: bytes, context: str, one: str, other: str) -> MaskKeys:
        """Return the keys of a mask that one site adds and the other subtracts.

        Both names are in it: a site that states another's public key as its own would otherwise
        have the other's masks, and cancel them.
        """
        names = sorted((one, other))
        parts = ("vector", "tail")
        return cls(*(derive(agreed, f"pair {part}", context, *names) for part in parts))
