"""What a server refuses an answer of a masked sum for, and what ends its round."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from nnunetv2_federated.federation.errors import RoundError, SiteError, SpoiledError
from nnunetv2_federated.federation.text import few
from nnunetv2_federated.secure.messages import Masked
from nnunetv2_federated.secure.server_state import ServerState, Stage


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
        raise SpoiledError(f"{line}. This round cannot be completed; go on with the next one.")
    raise RoundError(f"{line}. Start the missing sites, and go on with --c.")


def check_unopened(state: ServerState, masked: Masked) -> None:
    """Raise ``SiteError`` if a site says that it cannot use boxes that it was not sent."""
    others = [name for name in sorted(state.boxes) if name != masked.site]
    if masked.unopened != [name for name in others if name in masked.unopened]:
        raise SiteError(f"{masked.site} reports boxes of sites that it was sent none of")
