"""What sites and server say to each other for a masked sum, beside the masked vector itself.

In the order of a round: a site states its keys (:class:`Statement`); it is told everybody's
(:class:`ShareQuestion`) and answers with shares of its secrets for the others (:class:`Shares`); it
is given theirs (:class:`MaskQuestion`) and answers with its masked vector and :class:`Masked`; it
is told whose vectors have come (:class:`ConfirmQuestion`) and signs that list (:class:`Confirmed`);
and it is shown that enough have signed the same (:class:`OpenQuestion`), and tells for each site
one share (:class:`Opened`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from nnunetv2_federated.federation.payload import (
    MEGABYTE,
    MOST_CASES,
    STRICT,
    Hash,
    Name,
    Payload,
    Round,
    SiteName,
)
from nnunetv2_federated.secure.arithmetic import MOST_SITES

SECURE_FORMAT = 1
"""Number of the format of these messages; it is in what sites sign to each other."""

FEWEST_SITES = 3
"""A sum of two hides nothing of one from the other."""

MOST_ENTRIES = 50_000
"""Counts, and values, of a tail at most."""


def to_text(content: bytes) -> str:
    """Return bytes as text for a message."""
    return base64.b64encode(content).decode()


def to_bytes(text: str) -> bytes:
    """Return the bytes of a text.

    Raises
    ------
    ValueError
        If it is no base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("is not base64") from error


def _base64(text: str) -> str:
    to_bytes(text)
    return text


Bytes = Annotated[str, Field(max_length=20_000), AfterValidator(_base64)]
"""Bytes in base64."""
Signature = Annotated[str, Field(min_length=80, max_length=200), AfterValidator(_base64)]
Secret = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
"""16 bytes in hexadecimal digits."""
Boxes = Annotated[dict[SiteName, Bytes], Field(max_length=MOST_SITES)]
Signatures = Annotated[dict[SiteName, Signature], Field(max_length=MOST_SITES)]
SiteNames = Annotated[list[SiteName], Field(max_length=MOST_SITES)]
Entry = Annotated[int, Field(ge=0, lt=2**64)]
Attempt = Annotated[int, Field(ge=0, le=1000)]


def canonical(content: Any) -> bytes:  # noqa: ANN401  # JSON
    """Return the one text of some JSON that is hashed and signed."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True, config=STRICT)
class RoundTerms(Payload):
    """What all sites of a sum must have been told and have approved alike.

    A site builds its terms itself, of what its engineer has approved and of the train message that
    it has answered. They are in what it signs: so a server that tells one site a smaller learning
    rate, another total or other weights gets no sum.
    """

    run: Annotated[Name, Field(min_length=1)]
    """Identifier of the run."""
    approval: Hash
    """Hash of the proposal that the site's engineer has approved."""
    server_round: Round
    """Counted from 0."""
    model: Hash
    """SHA-256 of the weights that were received."""
    task: Hash
    """Hash of the train message's task, without what differs from site to site."""
    roster: Hash
    """Hash of the names and keys of all sites of the federation."""
    total_cases: Annotated[int, Field(ge=1, le=MOST_CASES * MOST_SITES)]
    """Cases of the whole roster, fixed before the first round."""
    largest_change: Annotated[float, Field(gt=0, le=1e6)]
    """Largest change of a weight that fits (``--secure-range``)."""
    minimum: Annotated[int, Field(ge=FEWEST_SITES, le=MOST_SITES)]
    """Fewest sites of a sum (``--secure-minimum``)."""
    parameters: Annotated[int, Field(ge=1, le=2**40)]
    """Length of the vector."""
    counts: Annotated[int, Field(ge=0, le=MOST_ENTRIES)]
    """Number of counts in the tail."""
    values: Annotated[int, Field(ge=0, le=MOST_ENTRIES)]
    """Number of values in the tail."""
    format: Literal[1] = 1
    """:data:`SECURE_FORMAT`."""

    @property
    def entries(self) -> int:
        """Length of the tail."""
        return 1 + self.counts + self.values

    def difference(self, other: RoundTerms) -> str | None:
        """Return the name of the first field that differs, ``None`` if all are equal."""
        for field in fields(self):
            if getattr(self, field.name) != getattr(other, field.name):
                return field.name
        return None


@dataclass(frozen=True, config=STRICT)
class Statement(Payload):
    """A site's keys for one attempt at one round, signed with the key that it is known by."""

    site: SiteName
    terms: RoundTerms
    attempt: Attempt
    """Counted from 0; each has keys of its own."""
    pair_key: Hash
    """X25519 public key: the masks that two sites share follow from it."""
    box_key: Hash
    """X25519 public key: what a site sends another through the server is encrypted with it."""
    self_commitment: Hash
    """SHA-256 of the secret that the site's own mask follows from."""
    signature: Signature

    def content(self) -> dict[str, Any]:
        """Return what is signed."""
        content = asdict(self)
        del content["signature"]
        return content


def context_of(statements: dict[str, Statement]) -> str:
    """Return the hash of all statements of a set: every key of its sum depends on it."""
    content = [statements[name].content() for name in sorted(statements)]
    return hashlib.sha256(canonical(["context", content])).hexdigest()


def shares_content(context: str, digests: str) -> dict[str, Any]:
    """Return what a site signs when it shares its secrets."""
    return {"context": context, "digests": digests}


def masked_content(context: str, names: list[str]) -> dict[str, Any]:
    """Return what a site signs when it has masked its update for these sites."""
    return {"context": context, "masked for": names}


def confirmed_content(context: str, names: list[str], survivors: Iterable[str]) -> dict[str, Any]:
    """Return what a site signs when it has been told of these survivors."""
    return {**masked_content(context, names), "survivors": sorted(survivors)}


@dataclass(frozen=True, config=STRICT)
class ShareQuestion(Payload):
    """The statements of everybody who trained: the set of this sum, once and for all."""

    statements: Annotated[list[Statement], Field(max_length=MOST_SITES)]


@dataclass(frozen=True, config=STRICT)
class Shares(Payload):
    """A site's answer: for each of the others a box that only that one can open."""

    site: SiteName
    boxes: Bytes
    """All boxes, one after another, in the order of the others' names."""
    digests: Bytes
    """:func:`.shares.digests_of` of all shares, also of those that it keeps itself."""
    signature: Signature
    """Over the digests: who tells another share than it was given is found out."""


@dataclass(frozen=True, config=STRICT)
class Dealt:
    """What a site has sent one other."""

    box: Bytes
    digests: Bytes
    """As in :class:`Shares`, with its signature."""
    signature: Signature


@dataclass(frozen=True, config=STRICT)
class MaskQuestion(Payload):
    """The boxes that others made for this site: with it, they are the sites to mask for."""

    most_bytes: ClassVar[int] = 4 * MEGABYTE

    boxes: Annotated[dict[SiteName, Dealt], Field(max_length=MOST_SITES)]


@dataclass(frozen=True, config=STRICT)
class Masked(Payload):
    """What comes with a masked vector."""

    most_bytes: ClassVar[int] = 4 * MEGABYTE

    site: SiteName
    tail: Annotated[str, Field(max_length=12 * (1 + 2 * MOST_ENTRIES)), AfterValidator(_base64)]
    """Weight, counts and values, masked: integers of 64 bits, little endian, in base64."""
    signature: Signature
    """Over the sites that it masked for."""
    unopened: SiteNames
    """Sites whose boxes it could not use, sorted: it tells no share of theirs."""


@dataclass(frozen=True, config=STRICT)
class ConfirmQuestion(Payload):
    """The sites whose vectors have come, with what each has signed."""

    masked: Signatures


@dataclass(frozen=True, config=STRICT)
class Confirmed(Payload):
    """A site's word that it was told of these survivors, and will hear of no others."""

    site: SiteName
    signature: Signature


@dataclass(frozen=True, config=STRICT)
class OpenQuestion(Payload):
    """Signatures of enough survivors: all were told of the same."""

    confirmed: Signatures


@dataclass(frozen=True, config=STRICT)
class Opened(Payload):
    """A site's answer: of each site one share, of its own mask's secret or of its pair key's.

    Its own mask's secret it tells as a whole. The shares would give that, too; so they are needed
    only of sites that do not answer, and a server of many sites has less to compute.
    """

    site: SiteName
    shares: Bytes
    """All shares, one after another, in the order of the names of those who were masked for.

    Those of sites whose boxes it could not use are left out.
    """
    own_secret: Secret
