"""Shares of secrets, any ``threshold`` of which give the secret back and fewer say nothing of it.

Shamir 1979 (doi:10.1145/359168.359176) over the field of 2**128 elements, as pycryptodome has it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Literal

from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.secure.keys import SECRET_BYTES, derive
from nnunetv2_federated.secure.messages import FEWEST_SITES

_NONCE, _TAG = 12, 16
BOX_BYTES = _NONCE + 2 * SECRET_BYTES + _TAG
"""Length of a box with two shares."""
DIGEST_BYTES = 32
Kind = Literal["own", "pair"]
"""Of the secret that a site's own mask follows from, or its pair key."""


def threshold(sites: int) -> int:
    """Return how many shares of a set of sites give a secret back.

    More than two thirds: two different lists of survivors would need ``2 * threshold`` signatures
    of ``sites`` sites, so only ``2 * threshold - sites`` colluding ones could sign both. ``sites``
    are those of one set, which the coordinator chooses: see :func:`most_colluders`.
    """
    return 2 * sites // 3 + 1


def usual_minimum(sites: int) -> int:
    """Return the usual least number of sites of a sum, for a federation of so many.

    More than two thirds, and three at least. A lower one lets a coordinator choose a small set with
    colluding sites in it, and two sums of one round: see :func:`most_colluders`.
    """
    return max(FEWEST_SITES, threshold(sites))


def most_colluders(sites: int, minimum: int) -> int:
    """Return how many sites may collude with the coordinator, whoever they are, without gain.

    They then learn the sum of the others, of which there are two or more. The bound of one set U1
    of sites is ``min(2 * threshold(|U1|) - |U1| - 1, minimum - 2)``: with one more they could
    have two lists of survivors signed, or be all but one in a sum. The coordinator chooses U1,
    by not listening to others: so it is the smallest bound of all sets from the minimum on, 5 for
    20 sites with the usual minimum of 14, though 7 if all 20 are there.

    Parameters
    ----------
    sites
        Sites of the whole federation.
    minimum
        Fewest sites of a sum, at most ``sites``.
    """
    sets = range(minimum, sites + 1)
    return min(minimum - 2, *(2 * threshold(size) - size - 1 for size in sets))


def split(secret: bytes, sites: int) -> list[bytes]:
    """Return a share of a secret of 16 bytes for each site, in the order of their names."""
    shares = Shamir.split(threshold(sites), sites, secret, ssss=False)
    return [share for _, share in sorted(shares)]


def combine(shares: Mapping[int, bytes], sites: int) -> bytes:
    """Return the secret that shares belong to; what wrong ones give is not it.

    Parameters
    ----------
    shares
        At least as many shares as the threshold, by the position of their holder among all sites,
        from 0.
    sites
        Number of sites that the secret was split for.
    """
    points = [(position + 1, share) for position, share in sorted(shares.items())]
    return bytes(Shamir.combine(points[: threshold(sites)], ssss=False))


def digest_of(kind: Kind, position: int, share: bytes) -> bytes:
    """Return the SHA-256 of a share of a kind, with its holder's position among all sites."""
    return hashlib.sha256(json.dumps([kind, position, share.hex()]).encode()).digest()


def digests_of(own: Sequence[bytes], pair: Sequence[bytes]) -> bytes:
    """Return the digests of all shares of a site's two secrets: two for each site, in order."""
    both = enumerate(zip(own, pair, strict=True))
    return b"".join(
        digest_of("own", position, one) + digest_of("pair", position, other)
        for position, (one, other) in both
    )


def is_dealt(digests: bytes, kind: Kind, position: int, share: bytes) -> bool:
    """Tell whether a share is the one that its dealer has listed for a holder."""
    place = DIGEST_BYTES * (2 * position + (kind == "pair"))
    return digests[place : place + DIGEST_BYTES] == digest_of(kind, position, share)


def close_box(content: bytes, agreed: bytes, way: tuple[str, str], context: str) -> bytes:
    """Encrypt two shares for another site.

    Parameters
    ----------
    content
        32 bytes.
    agreed
        What the two sites have agreed on, see :func:`.keys.agree`.
    way
        Names of the sender and of the receiver.
    context
        Hash of the statements of all sites.
    """
    nonce = os.urandom(_NONCE)
    key = derive(agreed, "box", *way, context)
    return nonce + AESGCM(key).encrypt(nonce, content, json.dumps([*way, context]).encode())


def open_box(box: bytes, agreed: bytes, way: tuple[str, str], context: str) -> bytes:
    """Decrypt what :func:`close_box` has encrypted.

    Raises
    ------
    SiteError
        If the box is of another sender, receiver or sum, or was changed.
    """
    key = derive(agreed, "box", *way, context)
    try:
        content = AESGCM(key).decrypt(
            box[:_NONCE], box[_NONCE:], json.dumps([*way, context]).encode()
        )
    except (InvalidTag, ValueError):
        raise SiteError(f"refused: the box from {way[0]} is not for {way[1]} in this sum") from None
    if len(content) != 2 * SECRET_BYTES:
        raise SiteError(f"refused: the box from {way[0]} does not hold two shares")
    return content


def unpack(content: bytes, size: int, names: list[str], sender: str) -> dict[str, bytes]:
    """Divide what was joined, by name.

    Raises
    ------
    SiteError
        If it has another length than that of one piece for each name.
    """
    if len(content) != size * len(names):
        raise SiteError(
            f"refused: {sender} sent {len(content)} bytes of shares, not {size} for each of "
            f"{len(names)} sites"
        )
    return {name: content[size * i : size * (i + 1)] for i, name in enumerate(names)}
