"""Which masks the sum of the survivors has left, from the shares that these have told."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from nnunetv2_federated.federation.errors import RoundError, SpoiledError
from nnunetv2_federated.federation.text import few
from nnunetv2_federated.secure.arithmetic import PooledTail, Tail, pool_tail, share_of
from nnunetv2_federated.secure.keys import SECRET_BYTES, MaskKeys, agree, commitment, public_hex
from nnunetv2_federated.secure.masking import put_on, sign_of
from nnunetv2_federated.secure.messages import to_bytes
from nnunetv2_federated.secure.server_rules import SPOILED
from nnunetv2_federated.secure.server_state import ServerState
from nnunetv2_federated.secure.shares import combine, threshold


def masks_left(state: ServerState) -> list[tuple[int, MaskKeys]]:
    """Return sign and keys of each mask that takes one off the sum.

    A survivor's own mask is in the sum. The masks that two survivors share cancel out; those that
    survivors share with a site whose vector never came do not.

    Parameters
    ----------
    state
        With the shares of at least as many sites as the threshold.

    Raises
    ------
    RoundError
        If too few shares of a site's secret are there yet.
    SpoiledError
        If too few ever will be, or a site has dealt shares that do not fit: each was compared with
        what that site has signed when it came.
    """
    masks = []
    for name in sorted(state.boxes):
        stated = state.by_name[name]
        if name in state.masked:
            told = bytes.fromhex(state.secrets.get(name, ""))
            own = told or _rebuild(state, name, commitment, stated.self_commitment)
            masks.append((-1, MaskKeys.of_self(own, state.context)))
            continue
        secret = _rebuild(state, name, public_hex, stated.pair_key)
        for other in sorted(state.masked):
            agreed = agree(secret, state.by_name[other].pair_key, other)
            pair = MaskKeys.of_pair(agreed, state.context, name, other)
            masks.append((-sign_of(other, name), pair))
    return masks


def pooled_tail(
    state: ServerState, masks: Iterable[tuple[int, MaskKeys]]
) -> tuple[PooledTail, float]:
    """Return the sum of the tails without masks, and the share of all cases that is in it.

    Raises
    ------
    SpoiledError
        If it makes no sense: a site has masked nonsense, and nobody can see which one.
    """
    tail: Tail = np.array(state.tail, np.uint64)
    put_on(np.empty(0, np.uint32), tail, masks)
    try:
        pooled = pool_tail(tail, state.terms.counts)
        return pooled, share_of(pooled.weight, state.terms.total_cases)
    except SpoiledError as error:
        raise SpoiledError(f"{state.round}: {error}. {SPOILED}") from None


def _rebuild(state: ServerState, name: str, public: Callable[[bytes], str], stated: str) -> bytes:
    """Return the secret of a site that the others' shares give, by what it has stated of it."""
    shares = {}
    for holder, text in state.opened.items():
        held = state.held_by(holder)
        if name in held:
            place = SECRET_BYTES * held.index(name)
            shares[state.names.index(holder)] = to_bytes(text)[place : place + SECRET_BYTES]
    _check_enough(state, name, len(shares))
    secret = combine(shares, len(state.names))
    if public(secret) != stated:
        raise SpoiledError(
            f"{state.round}: the shares that {name} has dealt do not give the secret that it has "
            f"stated. {SPOILED}"
        )
    return secret


def _check_enough(state: ServerState, name: str, found: int) -> None:
    """Raise an error if there are too few shares of a site's secret; names who lacks one."""
    least = threshold(len(state.names))
    if found >= least:
        return
    lacking = state.without_share_of(name)
    line = f"{state.round}: {found} shares of {name}'s secret are there, {least} are needed"
    line += f"; {few(lacking)} could not use the box that {name} sent" if lacking else ""
    silent = sorted(set(state.confirmed) - {*state.opened, *lacking, *state.refused})
    if found + len(silent) < least:
        raise SpoiledError(f"{line}. {SPOILED}")
    raise RoundError(f"{line}; missing: {few(silent)}. Start these sites, and go on with --c.")
