"""Who may be in a sum: the sites of a federation, each with the key that it signs with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass

from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.payload import STRICT, Payload, SiteName, first_problem
from nnunetv2_federated.secure.arithmetic import MOST_SITES
from nnunetv2_federated.secure.messages import FEWEST_SITES, canonical, to_bytes, to_text
from nnunetv2_federated.secure.public_keys import fingerprint, parse_public_key, public_line

_PREFIX = b"nnunetv2-federated secure aggregation v1\n"
"""Begins what is signed here; Flower has the same key sign times of day."""
STATEMENT, SHARES = "statement", "list of shares"
MASKED, CONFIRMED = "set to mask for", "list of survivors"
"""What is signed, in words for messages."""


@dataclass(frozen=True, config=STRICT)
class Roster(Payload):
    """Names and public keys of all sites of a federation, as its engineers approve them."""

    keys: Annotated[
        dict[SiteName, Annotated[str, Field(max_length=400)]],
        Field(min_length=FEWEST_SITES, max_length=MOST_SITES),
    ]
    """A line in OpenSSH's format for each site, by name."""

    def __post_init__(self) -> None:
        marks: dict[str, str] = {}
        for name, line in self.keys.items():
            mark = fingerprint(parse_public_key(line.encode()))
            if mark in marks:
                raise ValueError(f"{marks[mark]} and {name} have the same key")
            marks[mark] = name

    @classmethod
    def of(cls, keys: Mapping[str, ec.EllipticCurvePublicKey]) -> Roster:
        """Build a roster of keys.

        Raises
        ------
        SettingsError
            If there are fewer than three sites or more than 128, or two have the same key.
        """
        if not FEWEST_SITES <= len(keys) <= MOST_SITES:
            raise SettingsError(
                f"--secure-aggregation with {len(keys)} sites: it takes {FEWEST_SITES} to "
                f"{MOST_SITES}."
            )
        try:
            return cls({name: public_line(key).decode().strip() for name, key in keys.items()})
        except ValidationError as error:
            raise SettingsError(f"--secure-aggregation: {first_problem(error)}.") from None

    def public_key(self, name: str) -> ec.EllipticCurvePublicKey:
        """Return the key of a site.

        Raises
        ------
        SiteError
            If it is not of the federation.
        """
        if name not in self.keys:
            raise SiteError(f"refused: {name} is not in the approved roster")
        return parse_public_key(self.keys[name].encode())

    def fingerprints(self) -> dict[str, str]:
        """Return what engineers compare by telephone: ``ssh-keygen -lf`` of each key, by name."""
        return {name: fingerprint(self.public_key(name)) for name in sorted(self.keys)}

    def hash(self) -> str:
        """Return the hash of names and keys; texts behind the keys do not matter."""
        return hashlib.sha256(canonical(self.fingerprints())).hexdigest()

    def verify(self, name: str, what: str, content: Any, signature: str) -> None:  # noqa: ANN401
        """Check that a site has signed something.

        Parameters
        ----------
        name
            The site.
        what
            What it is, :data:`STATEMENT`, :data:`SHARES`, :data:`MASKED` or :data:`CONFIRMED`.
        content
            JSON that was signed.
        signature
            Signature in base64.

        Raises
        ------
        SiteError
            If it has not, or is not of the federation.
        """
        key = self.public_key(name)
        try:
            key.verify(to_bytes(signature), _signed(what, content), ec.ECDSA(hashes.SHA384()))
        except InvalidSignature:
            raise SiteError(f"refused: {name} has not signed this {what}") from None


@plain_dataclass(frozen=True)
class Member:
    """A site of the roster, in its own process: it has the private key of its own name.

    Raises
    ------
    SettingsError
        If the roster has another key for this site, or none.
    """

    name: str
    key: ec.EllipticCurvePrivateKey
    roster: Roster

    def __post_init__(self) -> None:
        own = fingerprint(self.key.public_key())
        if self.roster.fingerprints().get(self.name) != own:
            raise SettingsError(
                f"the roster of the federation has another key for {self.name} than this site, or "
                f"none: the coordinator must take the key with the fingerprint {own}."
            )

    def sign(self, what: str, content: Any) -> str:  # noqa: ANN401  # JSON
        """Return the site's signature in base64; see :meth:`Roster.verify`."""
        return to_text(self.key.sign(_signed(what, content), ec.ECDSA(hashes.SHA384())))


def _signed(what: str, content: Any) -> bytes:  # noqa: ANN401  # JSON
    return _PREFIX + canonical([what, content])
