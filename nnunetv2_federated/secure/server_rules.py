"""What a server refuses an answer of a masked sum for, and what ends its round."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from nnunetv2_federated.federation.errors import RoundError, SiteError, SpoiledError
from nnunetv2_federated.federation.text import few
from nnunetv2_federated.secure.arithmetic import Ring
from nnunetv2_federated.secure.keys import SECRET_BYTES
from nnunetv2_federated.secure.messages import (
    Dealt,
    Masked,
    MaskQuestion,
    Opened,
    Shares,
    shares_content,
    to_bytes,
    to_text,
)
from nnunetv2_federated.secure.roster import SHARES, Roster
from nnunetv2_federated.secure.server_state import ServerState, Stage
from nnunetv2_federated.secure.shares import BOX_BYTES, DIGEST_BYTES, is_dealt, unpack

SPOILED = "This round cannot be completed; go on with the next one."


def resumed(state: ServerState, total: Ring | None) -> tuple[ServerState, Ring | None]:
    """Return the state and the masked sum that a server goes on with.

    A sum that vectors were still coming for is left out, whatever is on the disk: which of them are
    in it is not known for certain, and the sites send the same ones again.

    Raises
    ------
    SpoiledError
        If the sites were asked to confirm or open a sum, and another one is there, or none: the
        sites tell what takes the masks off once, for that one.
    """
    if state.stage not in ("confirm", "open"):
        return replace(state, masked={}, tail=[], unopened={}), None
    if total is None:
        raise SpoiledError(f"{state.round}: the masked sum is missing. {SPOILED}")
    whole = total.dtype == np.uint32 and total.shape == (state.terms.parameters,)
    if not whole or total_hash(total) != state.total_hash:
        raise SpoiledError(f"{state.round}: the masked sum is not the one of this state. {SPOILED}")
    return state, total


def total_hash(total: Ring) -> str:
    """Return the SHA-256 of a masked sum."""
    return hashlib.sha256(np.ascontiguousarray(total).data).hexdigest()


def expect(
    state: ServerState,
    stage: Stage,
    name: str,
    known: Collection[str],
    asked: Collection[str] | None = None,
) -> None:
    """Refuse an answer of another stage, of a site that was not asked, or a second one.

    Raises
    ------
    SiteError
        If it is refused.
    """
    if state.stage != stage:
        raise SiteError(f"{name} came too late: the sum is at stage {state.stage}")
    if asked is not None and name not in asked:
        raise SiteError(f"{name} was not asked: it is not in the set of this sum")
    if name in known:
        raise SiteError(f"{name} answered twice")


def named(sender: str, site: str) -> str:
    """Return a site's name, if it is that of the node that sent the answer.

    Raises
    ------
    SiteError
        If an answer comes in another's name, which the other one would then be blamed for.
    """
    if sender != site:
        raise SiteError(f"{sender} answered in the name of {site}")
    return site


def advance(state: ServerState, before: Stage, stage: Stage) -> ServerState:
    """Return the state at a stage, the same one if its questions were asked before."""
    if state.stage not in (before, stage):
        raise RuntimeError(f"the sum is at {state.stage}: {stage} is not the next stage")
    return state if state.stage == stage else replace(state, stage=stage)


def require(
    state: ServerState, what: str, there: Collection[str], asked: Collection[str], least: int
) -> None:
    """Check that enough sites have answered.

    Parameters
    ----------
    state
        How far the sum is.
    what
        What those who answered have done, for the message.
    there, asked
        Who has answered, and everybody who was asked.
    least
        How many are needed.

    Raises
    ------
    RoundError
        If they are too few; names who is missing, and repeats why others have refused.
    SpoiledError
        If so many have refused that those who are missing are too few as well.
    """
    if len(there) >= least:
        return
    absent = sorted(set(asked) - set(there))
    silent = [name for name in absent if name not in state.refused]
    told = [f"{name} ({state.refused[name]})" for name in absent if name in state.refused]
    line = f"{state.round}: {len(there)} of {len(asked)} sites {what}, {least} are needed"
    line += f"; missing: {few(silent)}" if silent else ""
    line += f"; refused: {few(told)}" if told else ""
    if len(there) + len(silent) < least:
        raise SpoiledError(f"{line}. {SPOILED}")
    raise RoundError(f"{line}. Start the missing sites, and go on with --c.")


def check_unopened(state: ServerState, masked: Masked) -> None:
    """Raise ``SiteError`` if a site says that it cannot use boxes that it was not sent."""
    others = [name for name in sorted(state.boxes) if name != masked.site]
    if masked.unopened != [name for name in others if name in masked.unopened]:
        raise SiteError(f"{masked.site} reports boxes of sites that it was sent none of")


def check_digests(state: ServerState, shares: Shares, roster: Roster) -> None:
    """Raise ``SiteError`` if a site has not signed a list of two digests for each site."""
    name = shares.site
    unpack(to_bytes(shares.digests), 2 * DIGEST_BYTES, state.names, name)
    content = shares_content(state.context, shares.digests)
    roster.verify(name, SHARES, content, shares.signature)


def mask_questions(state: ServerState) -> dict[str, MaskQuestion]:
    """Return the question for each site that has shared its secrets, by name."""
    boxes = {
        name: unpack(to_bytes(shares.boxes), BOX_BYTES, state.others(name), name)
        for name, shares in state.boxes.items()
    }

    def dealt(dealer: str, name: str) -> Dealt:
        shares = state.boxes[dealer]
        return Dealt(to_text(boxes[dealer][name]), shares.digests, shares.signature)

    return {
        name: MaskQuestion({o: dealt(o, name) for o in sorted(boxes) if o != name})
        for name in boxes
    }


def check_told(state: ServerState, opened: Opened) -> None:
    """Check the shares that a site has told.

    Raises
    ------
    SiteError
        If they are not one for each site that it holds one of, or one is not what was dealt.
    """
    name = opened.site
    told = unpack(to_bytes(opened.shares), SECRET_BYTES, state.held_by(name), name)
    position = state.names.index(name)
    for dealer, share in told.items():
        kind = state.kind_told(dealer)
        if not is_dealt(to_bytes(state.boxes[dealer].digests), kind, position, share):
            raise SiteError(f"{name} told another share of {dealer}'s secret than it was given")
