"""Sites and a server of a masked sum in one process, each with its own state, for tests."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cache
from typing import TypeVar

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.errors import FederationError, SiteError
from nnunetv2_federated.federation.payload import Payload
from nnunetv2_federated.secure.arithmetic import Ring
from nnunetv2_federated.secure.contribution import Contribution
from nnunetv2_federated.secure.messages import (
    Confirmed,
    ConfirmQuestion,
    Masked,
    MaskQuestion,
    Opened,
    OpenQuestion,
    RoundTerms,
    ShareQuestion,
    Shares,
    Statement,
)
from nnunetv2_federated.secure.roster import Member, Roster
from nnunetv2_federated.secure.server_side import SecureMean, ServerSide
from nnunetv2_federated.secure.server_state import ServerState
from nnunetv2_federated.secure.site_side import SiteSide
from nnunetv2_federated.secure.site_state import SiteState

PayloadT = TypeVar("PayloadT", bound=Payload)

NAMES = ("basel", "bern", "chur", "genf", "thun")
STAGES = ("state", "share", "mask", "confirm", "open")
A, B = "a" * 64, "b" * 64


@cache
def key_of(name: str) -> ec.EllipticCurvePrivateKey:
    """Return a site's key, the same in all tests of a process."""
    del name
    return ec.generate_private_key(ec.SECP384R1())


@cache
def roster_of(names: tuple[str, ...]) -> Roster:
    return Roster.of({name: key_of(name).public_key() for name in names})


def terms_of(names: tuple[str, ...], **changes: object) -> RoundTerms:
    """Terms of a round of ten cases a site, for vectors of 50 weights, two counts and a value."""
    usual = RoundTerms(
        run="run1",
        approval=A,
        server_round=0,
        model=A,
        task=A,
        roster=roster_of(names).hash(),
        total_cases=10 * len(names),
        largest_change=8.0,
        minimum=3,
        parameters=50,
        counts=2,
        values=1,
    )
    return replace(usual, **changes)  # type: ignore[arg-type]


def part(number: int, parameters: int = 50) -> Contribution:
    """Return what site ``number`` adds: changes in [-1, 1], and numbers that are known by hand."""
    change = np.random.default_rng(number).uniform(-1, 1, parameters).astype(np.float32)
    return Contribution(change, 10.0, (100 + number, number), (0.25 * number,))


def refused(function: Callable[[], object], kind: type[FederationError] = SiteError) -> str:
    """Return the one line with which something is refused."""
    with pytest.raises(kind) as error:
        function()
    line = str(error.value)
    assert "\n" not in line
    return line


class Site:
    """A site in the hands of a test: what it remembers is written and read at every stage."""

    def __init__(
        self, names: tuple[str, ...], name: str, contribution: Contribution, terms: RoundTerms
    ) -> None:
        self.name = name
        self.contribution = contribution
        self.terms = terms
        self.side = SiteSide(Member(name, key_of(name), roster_of(names)), least=3)
        self.memory = ""
        """State as it would lie on the disk."""

    @property
    def state(self) -> SiteState:
        return SiteState.from_json(self.memory)

    def state_keys(self, attempt: int = 0) -> Statement:
        before = self.state if self.memory else None
        step = self.side.state_keys(self.terms, self.contribution, before, attempt=attempt)
        self.memory = step.state.to_json()
        return step.answer

    def share(self, question: ShareQuestion) -> Shares:
        step = self.side.share(self.state, question)
        self.memory = step.state.to_json()
        return step.answer

    def mask(self, question: MaskQuestion) -> tuple[Masked, Ring]:
        step = self.side.mask(self.state, question, self.contribution)
        self.memory = step.state.to_json()
        return step.answer, step.vector

    def confirm(self, question: ConfirmQuestion) -> Confirmed:
        step = self.side.confirm(self.state, question)
        self.memory = step.state.to_json()
        return step.answer

    def open_shares(self, question: OpenQuestion) -> Opened:
        step = self.side.open_shares(self.state, question)
        self.memory = step.state.to_json()
        return step.answer


class Sum:
    """A whole sum. Sites in ``lost`` of a stage do not answer from it on.

    Everything that passes the server is in :attr:`wire`, as it passes.
    """

    def __init__(
        self,
        names: tuple[str, ...] = NAMES[:4],
        lost: Mapping[str, Collection[str]] | None = None,
        parts: Mapping[str, Contribution] | None = None,
        changes: Mapping[str, object] | None = None,
    ) -> None:
        self.names = names
        self.lost = lost or {}
        self.terms = terms_of(names, **(changes or {}))
        self.parts = parts or {name: part(i, self.terms.parameters) for i, name in enumerate(names)}
        self.sites = {name: Site(names, name, self.parts[name], self.terms) for name in names}
        self.server = ServerSide(roster_of(names), ServerState(self.terms))
        self.vectors: dict[str, Ring] = {}
        self.wire: list[bytes] = []
        self.server_questions: dict[str, MaskQuestion] = {}
        self._gone: set[str] = set()

    def here(self, stage: str, names: Collection[str]) -> list[Site]:
        self._gone |= set(self.lost.get(stage, ()))
        return [self.sites[name] for name in sorted(names, reverse=True) if name not in self._gone]

    def up_to(self, last: str) -> Sum:
        """Go through the stages up to one, with it."""
        return self.go(STAGES[: STAGES.index(last) + 1])

    def go(self, stages: Collection[str]) -> Sum:
        """Go through these stages."""
        for stage in stages:
            getattr(self, stage)()
        return self

    def state(self) -> None:
        for site in self.here("state", self.names):
            self.server.take_statement(site.name, self._passed(site.state_keys()))

    def share(self) -> None:
        question = self._passed(self.server.share_question())
        for site in self.here("share", self.server.state.names):
            self.server.take_shares(site.name, self._passed(site.share(question)))

    def mask(self) -> None:
        questions = self.server_questions = self.server.mask_questions()
        for site in self.here("mask", questions):
            masked, vector = site.mask(self._passed(questions[site.name]))
            self.vectors[site.name] = vector.copy()
            self.wire.append(vector.tobytes())
            self.server.take_masked(site.name, self._passed(masked), vector)

    def confirm(self) -> None:
        question = self._passed(self.server.confirm_question())
        for site in self.here("confirm", self.server.state.masked):
            self.server.take_confirmed(site.name, self._passed(site.confirm(question)))

    def open(self) -> None:
        question = self._passed(self.server.open_question())
        for site in self.here("open", self.server.state.confirmed):
            self.server.take_opened(site.name, self._passed(site.open_shares(question)))

    def mean(self) -> SecureMean:
        return self.up_to("open").server.mean()

    def restart_server(self, *, with_sum: bool) -> None:
        """Kill the server; it goes on with what it has written."""
        state = ServerState.from_json(self.server.state.to_json())
        total = None if self.server.total is None or not with_sum else self.server.total.copy()
        self.server = ServerSide(roster_of(self.names), state, total)

    def _passed(self, message: PayloadT) -> PayloadT:
        """Carry a message as text, both ways."""
        text = message.to_json()
        self.wire.append(text.encode())
        return type(message).from_json(text)


def expected_sum(parts: Collection[Contribution], total_cases: int, largest: float) -> Vector:
    """Add what these sites' rounded changes are, in integers of 64 bits, and divide at the end."""
    scale = (2.0**31 - 128) / largest
    factors = [scale * (p.weight / total_cases) for p in parts]
    changes = [p.change.astype(np.float64) for p in parts]
    units = np.sum(
        [np.rint(c * f).astype(np.int64) for c, f in zip(changes, factors, strict=True)], axis=0
    )
    share = sum(p.weight for p in parts) / total_cases
    return np.asarray(units * (1 / (scale * share)), np.float32)
