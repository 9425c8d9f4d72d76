"""What a site remembers of a sum, so that it never tells more of an update than one sum."""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from functools import cached_property
from typing import Annotated, ClassVar, Generic, TypeVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from nnunetv2_federated.federation.payload import MEGABYTE, STRICT, Hash, Payload, Round
from nnunetv2_federated.secure.arithmetic import MOST_SITES, Ring
from nnunetv2_federated.secure.messages import (
    Boxes,
    Masked,
    RoundTerms,
    Secret,
    Shares,
    Signatures,
    Statement,
    context_of,
)
from nnunetv2_federated.secure.shares import threshold

Pair = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]


@dataclass(frozen=True, config=STRICT)
class SiteState(Payload):
    """A site's part of one round. It holds secrets: only the site's own user may read it.

    It says how far the site has gone: ``statements`` are there once it has shared its secrets,
    ``boxes`` once it has masked its update, ``survivors`` once it has confirmed them.
    """

    most_bytes: ClassVar[int] = 4 * MEGABYTE

    statement: Statement
    update: Hash
    """:meth:`.Contribution.digest` of what is to be masked."""
    pair_secret: Secret
    box_secret: Secret
    self_secret: Secret
    statements: Annotated[list[Statement], Field(max_length=MOST_SITES)] = field(
        default_factory=list
    )
    """Of everybody in the set, in the order of their names."""
    own_shares: Pair = ""
    """The two shares of its own secrets that the site keeps itself."""
    sent: Shares | None = None
    """What it has dealt to the others."""
    boxes: Boxes = field(default_factory=dict)
    """The boxes that were made for it, by those whom it has masked for."""
    masked: Masked | None = None
    """What went with the masked vector."""
    survivors: Signatures = field(default_factory=dict)
    """Whose vectors have come, as the site was told."""
    confirmed: str = ""
    """Its signature below that."""
    past: Annotated[dict[str, Round], Field(max_length=20_000)] = field(default_factory=dict)
    """The last round of each run that the site has masked an update of before."""

    @property
    def terms(self) -> RoundTerms:
        """What was agreed for the round."""
        return self.statement.terms

    @property
    def site(self) -> str:
        """Name of this site."""
        return self.statement.site

    @property
    def names(self) -> list[str]:
        """Everybody who shared keys for this sum, sorted."""
        return [statement.site for statement in self.statements]

    @cached_property
    def by_name(self) -> dict[str, Statement]:
        """The statements by site."""
        return {statement.site: statement for statement in self.statements}

    @cached_property
    def context(self) -> str:
        """Hash of all statements."""
        return context_of(self.by_name)

    @property
    def masked_rounds(self) -> dict[str, int]:
        """The last round of each run that the site has masked an update of, with this one."""
        now = {self.terms.run: self.terms.server_round} if self.masked is not None else {}
        return {**self.past, **now}

    @property
    def masked_for(self) -> list[str]:
        """Sites that the update was masked for, with this one, sorted."""
        return sorted([*self.boxes, self.site]) if self.masked is not None else []

    @property
    def opens(self) -> list[str]:
        """Sites that it holds shares of, with this one, sorted."""
        lacking = self.masked.unopened if self.masked is not None else []
        return [name for name in self.masked_for if name not in lacking]

    @property
    def fewest(self) -> int:
        """Fewest sites that the sum may be of."""
        return max(threshold(len(self.statements)), self.terms.minimum)


AnswerT = TypeVar("AnswerT")


@plain_dataclass(frozen=True)
class Step(Generic[AnswerT]):
    """What a site remembers from now on, and its answer.

    The answer may leave the site only after the state is on the disk: see :func:`.answer`.
    """

    state: SiteState
    answer: AnswerT


@plain_dataclass(frozen=True)
class MaskedStep(Step[Masked]):
    """As :class:`Step`, with the masked vector."""

    vector: Ring
