"""What a site refuses of a masked sum: other terms, strangers, too few, and a second sum."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.federation.text import few
from nnunetv2_federated.secure.keys import SECRET_BYTES, agree
from nnunetv2_federated.secure.messages import (
    Dealt,
    RoundTerms,
    Statement,
    shares_content,
    to_bytes,
)
from nnunetv2_federated.secure.roster import SHARES, Roster
from nnunetv2_federated.secure.shares import is_dealt, open_box, usual_minimum
from nnunetv2_federated.secure.site_state import SiteState
from nnunetv2_federated.secure.statements import check_statement


def check_minimum(terms: RoundTerms, roster: Roster, least: int | None) -> None:
    """Refuse a round whose sum may be of fewer sites than this site's engineer allows.

    Parameters
    ----------
    terms
        What was agreed for the round.
    roster
        All sites of the federation, as the engineer has approved them.
    least
        Least number that the engineer allows; ``None`` for :func:`.usual_minimum` of the roster.

    Raises
    ------
    SiteError
        If it is refused, or there are not as many sites as the minimum.
    """
    sites = len(roster.keys)
    allowed = usual_minimum(sites) if least is None else least
    if not allowed <= terms.minimum <= sites:
        raise SiteError(
            f"refused --secure-minimum {terms.minimum}: this site allows {allowed} to {sites}, of "
            f"the {sites} sites that it has approved"
        )


def check_order(before: SiteState, terms: RoundTerms, attempt: int) -> None:
    """Refuse keys for a round that was masked, or lies before one that the site has gone on to.

    Parameters
    ----------
    before
        What the site remembers.
    terms, attempt
        What it is asked for.

    Raises
    ------
    SiteError
        If it is refused.
    """
    came = terms.server_round
    if before.terms.run != terms.run:
        last = before.past.get(terms.run, -1)
        if came <= last:
            raise SiteError(
                f"refused round {came + 1} of run {terms.run}: this site has masked its updates up "
                f"to round {last + 1}, and another run's since"
            )
        return
    here = before.terms.server_round
    if came < here:
        raise SiteError(f"refused round {came + 1}: this site has gone on to round {here + 1}")
    if came == here:
        _check_same_round(before, before.terms.difference(terms), attempt)


def _check_same_round(before: SiteState, field: str | None, attempt: int) -> None:
    """Refuse a round that was masked but with the same terms, of which ``field`` differs."""
    number, known = before.terms.server_round + 1, before.statement.attempt
    if before.masked is not None and field is not None:
        raise SiteError(
            f"refused round {number} with another {field}: this site has masked an update of it"
        )
    if before.masked is not None and attempt != known:
        raise SiteError(f"refused a new attempt: this site has masked an update of round {number}")
    if field is None and attempt < known:
        raise SiteError(f"refused attempt {attempt + 1}: this site has gone on to {known + 1}")


def check_set(state: SiteState, everybody: Sequence[Statement], roster: Roster) -> None:
    """Check the statements of everybody who is to be in a sum.

    Raises
    ------
    SiteError
        If a site is twice in it, this one is not, they are too few, or one is a stranger, has not
        signed its statement, or was told other terms; names the site and the field.
    """
    names = [statement.site for statement in everybody]
    if len(set(names)) < len(names):
        raise SiteError("refused: a site is twice in the set")
    if state.statement not in everybody:
        raise SiteError("refused: what this site has stated is not in the set")
    check_size(len(names), state.terms.minimum, "the set")
    for statement in everybody:
        check_statement(statement, state.terms, state.statement.attempt, roster)
    keys = [key for statement in everybody for key in (statement.pair_key, statement.box_key)]
    if len(set(keys)) < len(keys):
        raise SiteError("refused: a key is stated twice in the set")


def check_boxes(state: SiteState, boxes: Mapping[str, Dealt], roster: Roster) -> None:
    """Check the boxes of those whom the update is to be masked for.

    Raises
    ------
    SiteError
        If they are of strangers, or too few, or a list of shares is not its dealer's. What is in
        the boxes is not needed to mask: see :func:`unopened`.
    """
    others = [name for name in state.names if name != state.site]
    check_known(boxes, others, "among those it shared its secrets with")
    check_size(len(boxes) + 1, state.fewest, "the set to mask for")
    for name, dealt in boxes.items():
        content = shares_content(state.context, dealt.digests)
        roster.verify(name, SHARES, content, dealt.signature)


def unopened(state: SiteState, boxes: Mapping[str, Dealt]) -> list[str]:
    """Return the sites whose boxes this one cannot use, sorted.

    Such a box cannot be opened, or has other shares than its dealer has listed. The site masks for
    them all the same: else one site could end a round by a box that it has spoiled, and its victims
    would seem to be at fault.
    """
    return sorted(name for name in boxes if not _opens(state, name, boxes[name]))


def _opens(state: SiteState, name: str, dealt: Dealt) -> bool:
    try:
        pair = open_own(state, name, dealt.box)
    except SiteError:
        return False
    digests, place = to_bytes(dealt.digests), state.names.index(state.site)
    own_fits = is_dealt(digests, "own", place, pair[:SECRET_BYTES])
    return own_fits and is_dealt(digests, "pair", place, pair[SECRET_BYTES:])


def check_known(names: Collection[str], known: Collection[str], what: str) -> None:
    """Raise ``SiteError`` if there are names that are not known; ``what`` says among whom."""
    strangers = sorted(set(names) - set(known))
    if strangers:
        raise SiteError(f"refused: not {what}: {few(strangers)}")


def check_size(found: int, least: int, what: str) -> None:
    """Raise ``SiteError`` if a set has fewer than so many sites."""
    if found < least:
        raise SiteError(f"refused: {what} has {found} sites, at least {least} are needed")


def open_own(state: SiteState, name: str, box: str) -> bytes:
    """Return the two shares of a site's secrets that this site holds: 32 bytes.

    Raises
    ------
    SiteError
        If they are in a box that is not for this site in this sum.
    """
    if name == state.site:
        return bytes.fromhex(state.own_shares)
    agreed = agree(bytes.fromhex(state.box_secret), state.by_name[name].box_key, name)
    return open_box(to_bytes(box), agreed, (name, state.site), state.context)
