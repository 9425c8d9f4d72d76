"""Whether a site has stated its keys itself, and for the same round as others."""

from __future__ import annotations

from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.secure.keys import check_key
from nnunetv2_federated.secure.messages import RoundTerms, Statement
from nnunetv2_federated.secure.roster import STATEMENT, Roster


def check_statement(statement: Statement, terms: RoundTerms, attempt: int, roster: Roster) -> None:
    """Check what a site has stated, wherever it comes from.

    Parameters
    ----------
    statement
        The statement as it came.
    terms, attempt
        What was agreed for the round, and the number of the attempt, as they are known here.
    roster
        All sites of the federation.

    Raises
    ------
    SiteError
        If it is a stranger's, forged, of other terms or another attempt, or its keys are none;
        names the site and the first field that differs.
    """
    name, theirs = statement.site, statement.terms
    roster.verify(name, STATEMENT, statement.content(), statement.signature)
    field = terms.difference(theirs)
    if field is not None:
        raise SiteError(
            f"refused: {name} was told another {field}: {getattr(theirs, field)}, here "
            f"{getattr(terms, field)}"
        )
    if statement.attempt != attempt:
        raise SiteError(
            f"refused: the keys of {name} are for attempt {statement.attempt + 1}, here it is "
            f"{attempt + 1}"
        )
    for key in (statement.pair_key, statement.box_key):
        check_key(key, name)
