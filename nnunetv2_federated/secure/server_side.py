"""The server's part in a masked sum: it passes on, adds up, and takes off masks from the sum.

It has no key, and no vector of a site without masks: what it learns is the sum. Every answer is
checked as it comes, so that a site whose answer cannot be used is named, and left out while that is
still possible. The state holds nothing secret; with the masked sum it is all that a server needs
that was killed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.secure.arithmetic import (
    PooledTail,
    Ring,
    mean_change,
    tail_of,
)
from nnunetv2_federated.secure.keys import commitment
from nnunetv2_federated.secure.masking import put_on
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
    confirmed_content,
    masked_content,
    to_bytes,
)
from nnunetv2_federated.secure.roster import CONFIRMED, MASKED, Roster
from nnunetv2_federated.secure.server_rules import (
    advance,
    check_digests,
    check_told,
    check_unopened,
    expect,
    mask_questions,
    named,
    require,
    resumed,
    total_hash,
)
from nnunetv2_federated.secure.server_state import ServerState, Stage
from nnunetv2_federated.secure.shares import BOX_BYTES, threshold, unpack
from nnunetv2_federated.secure.statements import check_statement
from nnunetv2_federated.secure.unmasking import masks_left, pooled_tail

_BEFORE: dict[Stage, Stage] = {
    "share": "state",
    "mask": "share",
    "confirm": "mask",
    "open": "confirm",
}


@dataclass(frozen=True)
class SecureMean:
    """What a server learns of a round's updates."""

    change: Vector
    """Mean change of the weights, each site's counted by its weight: float32, (parameters,)."""
    tail: PooledTail
    sites: tuple[str, ...]
    """Whose updates are in it, sorted."""


class ServerSide:
    """One sum, from the sites' statements to their mean.

    Every answer is taken with the name of its sender: the one of the node that has been
    authenticated, not one that the answer tells.

    Before a stage's questions are sent, :attr:`state` has to be on the disk, and before that from
    the stage ``confirm`` on :attr:`total`: once one site has opened the sum, no other can be made.

    Parameters
    ----------
    roster
        All sites of the federation.
    state
        How far the sum is; a new one has terms only.
    total
        Masked sum of the vectors, shape (parameters,). A server that was killed while these came
        asks for all of them again.

    Raises
    ------
    SpoiledError
        If the sites were asked to confirm or open a sum, and it is not there.
    """

    def __init__(self, roster: Roster, state: ServerState, total: Ring | None = None) -> None:
        self._roster = roster
        self.state, self.total = resumed(state, total)

    @property
    def terms(self) -> RoundTerms:
        """What was agreed for the round."""
        return self.state.terms

    def take_refusal(self, name: str, reason: str) -> None:
        """Remember why a site has refused a question, for the message if it is needed.

        A refusal is for good: the same question would be refused again. Of a site that has failed
        for another reason nothing is to be remembered, it is missing.
        """
        self.state = replace(self.state, refused={**self.state.refused, name: clean(reason)})

    def take_statement(self, sender: str, statement: Statement) -> None:
        """Take a site into the set.

        Raises
        ------
        SiteError
            If it comes too late, twice, is forged, or is of other terms or another attempt.
        """
        name = named(sender, statement.site)
        expect(self.state, "state", name, self.state.names)
        check_statement(statement, self.terms, self.state.attempt, self._roster)
        self.state = replace(self.state, statements=[*self.state.statements, statement])

    def share_question(self) -> ShareQuestion:
        """Fix the set, and return the question for each of its sites.

        Raises
        ------
        RoundError
            If they are too few.
        """
        self._go_on("share", self.state.names, self._roster.keys, self.terms.minimum)
        return ShareQuestion(self.state.statements)

    def take_shares(self, sender: str, shares: Shares) -> None:
        """Take a site's boxes for the others.

        Raises
        ------
        SiteError
            If they come too late, twice, from outside of the set, are not one for each other, or
            their list is not signed.
        """
        name = named(sender, shares.site)
        expect(self.state, "share", name, self.state.boxes, self.state.names)
        unpack(to_bytes(shares.boxes), BOX_BYTES, self.state.others(name), name)
        check_digests(self.state, shares, self._roster)
        self.state = replace(self.state, boxes={**self.state.boxes, name: shares})

    def mask_questions(self) -> dict[str, MaskQuestion]:
        """Return the question for each site that has shared its secrets, by name.

        Raises
        ------
        RoundError
            If they are too few.
        """
        self._go_on("mask", self.state.boxes, self.state.names, self.state.fewest)
        return mask_questions(self.state)

    def take_masked(self, sender: str, masked: Masked, vector: Ring) -> None:
        """Add a site's masked vector.

        Parameters
        ----------
        sender
            Name that the node is known by which the answer came from.
        masked
            What came with it.
        vector
            The vector, shape (parameters,).

        Raises
        ------
        SiteError
            If it comes too late, twice, from outside of the set, or has another length.
        """
        name, terms = named(sender, masked.site), self.terms
        expect(self.state, "mask", name, self.state.masked, self.state.boxes)
        if vector.dtype != np.uint32 or vector.shape != (terms.parameters,):
            raise SiteError(f"{name} sent {vector.dtype} {vector.shape} in place of the weights")
        packed = to_bytes(masked.tail)
        if len(packed) != terms.entries * 8:
            raise SiteError(
                f"{name} sent {len(packed)} bytes in place of {terms.entries} counts and sums"
            )
        content = masked_content(self.state.context, sorted(self.state.boxes))
        self._roster.verify(name, MASKED, content, masked.signature)
        check_unopened(self.state, masked)
        tail = tail_of(packed)
        if self.total is None:
            self.total = np.zeros(terms.parameters, np.uint32)
        else:
            tail += np.array(self.state.tail, np.uint64)
        self.total += vector
        signatures = {**self.state.masked, name: masked.signature}
        unopened = {**self.state.unopened, name: masked.unopened}
        entries = [int(entry) for entry in tail]
        self.state = replace(self.state, masked=signatures, tail=entries, unopened=unopened)

    def confirm_question(self) -> ConfirmQuestion:
        """Fix whose vectors are in the sum, and return the question for each of these sites.

        Raises
        ------
        RoundError
            If they are too few.
        """
        self._go_on("confirm", self.state.masked, self.state.boxes, self.state.fewest)
        if self.total is not None and not self.state.total_hash:
            self.state = replace(self.state, total_hash=total_hash(self.total))
        return ConfirmQuestion(self.state.masked)

    def take_confirmed(self, sender: str, confirmed: Confirmed) -> None:
        """Take a site's word that it was told of these survivors.

        Raises
        ------
        SiteError
            If it comes too late, twice, or from a site that is none of them, or is forged.
        """
        name = named(sender, confirmed.site)
        expect(self.state, "confirm", name, self.state.confirmed, self.state.masked)
        boxes, masked = sorted(self.state.boxes), self.state.masked
        content = confirmed_content(self.state.context, boxes, masked)
        self._roster.verify(name, CONFIRMED, content, confirmed.signature)
        signatures = {**self.state.confirmed, name: confirmed.signature}
        self.state = replace(self.state, confirmed=signatures)

    def open_question(self) -> OpenQuestion:
        """Return the question for each survivor that has confirmed the list.

        Raises
        ------
        RoundError
            If they are too few.
        """
        least = threshold(len(self.state.names))
        self._go_on("open", self.state.confirmed, self.state.masked, least)
        return OpenQuestion(self.state.confirmed)

    def take_opened(self, sender: str, opened: Opened) -> None:
        """Take a site's shares, and its own mask's secret.

        Raises
        ------
        SiteError
            If they come twice, from a site that is no survivor, are not one for each site, or it
            has told another share than it was dealt, or another secret than it has stated.
        """
        name = named(sender, opened.site)
        expect(self.state, "open", name, self.state.opened, self.state.masked)
        check_told(self.state, opened)
        if commitment(bytes.fromhex(opened.own_secret)) != self.state.by_name[name].self_commitment:
            raise SiteError(f"{name} told another secret than the one that it has stated")
        self.state = replace(
            self.state,
            opened={**self.state.opened, name: opened.shares},
            secrets={**self.state.secrets, name: opened.own_secret},
        )

    def mean(self) -> SecureMean:
        """Take the masks off the sum, once, and return the mean.

        After an error the state and the masked sum are as before, so that it is raised again.

        Raises
        ------
        RoundError
            If too few sites have opened the sum.
        SpoiledError
            If no further answer can help: a site has dealt shares that do not fit, or the sum of
            the counts makes no sense. The next round may begin with the same model.
        """
        if self.total is None or self.state.stage != "open":
            raise RuntimeError("open_question and take_opened come before mean, once")
        state, least = self.state, threshold(len(self.state.names))
        require(state, "opened the sum", state.opened, state.confirmed, least)
        masks = masks_left(self.state)
        pooled, share = pooled_tail(state, masks)
        total, self.total = self.total, None
        put_on(total, np.empty(0, np.uint64), masks)
        change = mean_change(total, self.terms.largest_change, share)
        return SecureMean(change, pooled, tuple(sorted(self.state.masked)))

    def _go_on(
        self, stage: Stage, there: Collection[str], asked: Collection[str], least: int
    ) -> None:
        """Go on to a stage if enough have answered, or stay in it: its questions were asked."""
        after = advance(self.state, _BEFORE[stage], stage)
        if after is not self.state:
            require(self.state, f"are there for the stage {stage!r}", there, asked, least)
            self.state = after
