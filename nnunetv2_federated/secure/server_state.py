"""How far a masked sum is: what a server that was killed goes on from."""

from __future__ import annotations

from dataclasses import field
from functools import cached_property
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from nnunetv2_federated.federation.payload import MEGABYTE, STRICT, Payload, SiteName, Text
from nnunetv2_federated.secure.arithmetic import MOST_SITES
from nnunetv2_federated.secure.messages import (
    Attempt,
    Boxes,
    Entry,
    RoundTerms,
    Secret,
    Shares,
    Signatures,
    SiteNames,
    Statement,
    context_of,
)
from nnunetv2_federated.secure.shares import Kind, threshold

Stage = Literal["state", "share", "mask", "confirm", "open"]


@dataclass(frozen=True, config=STRICT)
class ServerState(Payload):
    """How far a sum is. All of it is known to the sites, too, or of no use without their keys."""

    most_bytes: ClassVar[int] = 8 * MEGABYTE

    terms: RoundTerms
    stage: Stage = "state"
    """What the sites were last asked for."""
    statements: Annotated[list[Statement], Field(max_length=MOST_SITES)] = field(
        default_factory=list
    )
    boxes: Annotated[dict[SiteName, Shares], Field(max_length=MOST_SITES)] = field(
        default_factory=dict
    )
    """Of each site that has shared its secrets: what it has dealt."""
    masked: Signatures = field(default_factory=dict)
    """Of each site whose vector is in the masked sum."""
    tail: list[Entry] = field(default_factory=list)
    """Sum of the masked tails."""
    confirmed: Signatures = field(default_factory=dict)
    opened: Boxes = field(default_factory=dict)
    """Of each site that has opened the sum: its shares, one after another."""
    secrets: Annotated[dict[SiteName, Secret], Field(max_length=MOST_SITES)] = field(
        default_factory=dict
    )
    """Of each site that has opened the sum: its own mask's secret."""
    unopened: Annotated[dict[SiteName, SiteNames], Field(max_length=MOST_SITES)] = field(
        default_factory=dict
    )
    """Of sites whose vectors are in the sum: whose boxes they could not use."""
    refused: Annotated[dict[SiteName, Text], Field(max_length=MOST_SITES)] = field(
        default_factory=dict
    )
    """Of sites that have refused to go on: why."""
    attempt: Attempt = 0
    """Counted from 0; a further one at the same round begins with keys of its own."""
    total_hash: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    """SHA-256 of the masked sum, once it is known whose vectors are in it."""

    @cached_property
    def names(self) -> list[str]:
        """Everybody who shared keys for this sum, sorted."""
        return sorted(statement.site for statement in self.statements)

    @property
    def fewest(self) -> int:
        """Fewest sites that the sum may be of."""
        return max(threshold(len(self.names)), self.terms.minimum)

    @property
    def round(self) -> str:
        """The round in words."""
        return f"round {self.terms.server_round + 1}"

    def others(self, name: str) -> list[str]:
        """Return everybody else who shared keys for this sum, sorted."""
        return [other for other in self.names if other != name]

    def kind_told(self, dealer: str) -> Kind:
        """Return of which of a site's secrets shares are told: of a survivor its own mask's."""
        return "own" if dealer in self.masked else "pair"

    def held_by(self, name: str) -> list[str]:
        """Return the sites of whose secrets a site holds a share, sorted."""
        lacking = self.unopened.get(name, [])
        return [dealer for dealer in sorted(self.boxes) if dealer not in lacking]

    def without_share_of(self, dealer: str) -> list[str]:
        """Return who says that the box of a site was of no use, sorted."""
        return sorted(name for name, lacking in self.unopened.items() if dealer in lacking)

    @cached_property
    def by_name(self) -> dict[str, Statement]:
        """The statements by site."""
        return {statement.site: statement for statement in self.statements}

    @cached_property
    def context(self) -> str:
        """Hash of all statements."""
        return context_of(self.by_name)
