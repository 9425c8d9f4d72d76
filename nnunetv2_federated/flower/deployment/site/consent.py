"""What a site's engineer has approved, and taken back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunetv2_federated.federation.choosing import ChoiceProposal
from nnunetv2_federated.federation.errors import CheckpointError, SettingsError, SiteError
from nnunetv2_federated.federation.evaluation import EvaluationProposal
from nnunetv2_federated.federation.files import (
    private_folder,
    read_state,
    wait_for_turn,
    write_state,
)
from nnunetv2_federated.federation.proposals import PlanProposal, Proposal

PROPOSED, APPROVED = "proposed.json", "approved.json"
FEWEST_DIGITS = 12
_ALL_DIGITS = 64
_FORMAT = 2
_PROPOSED_AGAIN = "delete it; it will be proposed again"
_REMEDY = "nothing is approved until it is deleted and --approve is run again"

Agreement = Proposal | PlanProposal | EvaluationProposal | ChoiceProposal
_KINDS: dict[object, type[Agreement]] = {
    kind.what: kind for kind in (Proposal, PlanProposal, EvaluationProposal, ChoiceProposal)
}

Record = Callable[..., None]
"""Takes an event and its fields, for the audit log."""


def record_nothing(event: str, **fields: str | float | bool | None) -> None:
    """Record nothing: for a site without an audit log, as in a test."""
    del event, fields


class NotApprovedError(SiteError):
    """A site was asked and has not decided yet; it may be asked again."""


class Consent:
    """Approvals of one site, kept in its private folder; looked up anew for every message.

    Parameters
    ----------
    site
        Name of the site.
    folder
        Private folder of this site.
    ask
        Called with what is not approved yet, returns whether to take part; ``None`` if nobody is
        there.
    record
        Called with every decision, for the audit log: an event and its fields.
    """

    def __init__(
        self,
        site: str,
        folder: Path,
        ask: Callable[[Agreement], bool] | None = None,
        record: Record | None = None,
    ) -> None:
        self.ask = ask
        self._site = site
        self._folder = folder
        self._record = record or record_nothing

    def approve(self, approval: str, how: str) -> None:
        """Take part in what has this hash; ``how`` says who decided, and how."""
        self._record("approved", sha256=approval, how=how)
        self._change(approval, approved=True)

    def withdraw(self, approval: str, how: str) -> None:
        """Take an approval back; from the next message on the site takes no part."""
        self._change(approval, approved=False)
        self._record("withdrawn", sha256=approval, how=how)

    def is_approved(self, agreement: Agreement) -> bool:
        """Whether something was approved and not taken back."""
        return agreement.approval() in self._read()["approved"]

    def require(self, agreement: Agreement) -> None:
        """Raise ``NotApprovedError`` unless it is approved; ask, if somebody is there.

        What was withdrawn is asked again only by ``--approve``.
        """
        if self.is_approved(agreement):
            return
        approval = agreement.approval()
        if self.proposed() != agreement:
            content = {"what": agreement.what, "content": asdict(agreement)}
            write_state(self._folder / PROPOSED, content, _FORMAT)
            self._record("proposed", what=agreement.what, sha256=approval)
        withdrawn = approval in self._read()["withdrawn"]
        if withdrawn or self.ask is None or not self.ask(agreement):
            raise NotApprovedError(
                f"site {self._site} has not approved {agreement.what} {approval[:12]}"
                f"{', its approval was withdrawn' if withdrawn else ' yet'}"
            )
        self.approve(approval, "asked by the running site")

    def require_still(self, agreement: Agreement) -> None:
        """Raise ``SiteError`` if an approval was taken back."""
        if not self.is_approved(agreement):
            raise SiteError(
                f"site {self._site}: the approval of {agreement.what} "
                f"{agreement.approval()[:12]} was withdrawn"
            )

    def proposed(self) -> Agreement | None:
        """Return what was asked last and is not approved."""
        content = read_state(self._folder / PROPOSED, _FORMAT, _PROPOSED_AGAIN)
        if content is None:
            return None
        try:
            kind = _KINDS[content["what"]]
            agreement = kind.from_json(json.dumps(content["content"]))
        except (KeyError, TypeError, SiteError) as error:
            raise CheckpointError(
                f"{self._folder / PROPOSED} is damaged: {_PROPOSED_AGAIN}"
            ) from error
        return None if self.is_approved(agreement) else agreement

    def complete(self, flag: str, digits: str) -> str:
        """Return the whole hash that begins with these digits.

        Parameters
        ----------
        flag
            Flag of the command, for the message.
        digits
            At least twelve, as shown; all of them if it was neither proposed nor approved.

        Raises
        ------
        SettingsError
            If they are too few, no hash, or of something unknown.
        """
        if not re.fullmatch(rf"[0-9a-f]{{{FEWEST_DIGITS},{_ALL_DIGITS}}}", digits):
            raise SettingsError(
                f"{flag} {digits[:80]!r}: give at least {FEWEST_DIGITS} digits (0-9, a-f) of the "
                "hash that is shown."
            )
        if len(digits) == _ALL_DIGITS:
            return digits
        proposal = self.proposed()
        known: list[str] = [*self._read()["approved"], *([proposal.approval()] if proposal else [])]
        found = [approval for approval in known if approval.startswith(digits)]
        if len(found) != 1:
            raise SettingsError(
                f"{flag} {digits}: not what was proposed last or approved; give all {_ALL_DIGITS} "
                "digits."
            )
        return found[0]

    def _change(self, approval: str, *, approved: bool) -> None:
        private_folder(self._folder)
        path = self._folder / APPROVED
        with wait_for_turn(path.with_suffix(".lock")):
            content = self._read()
            for name, holds in (("approved", approved), ("withdrawn", not approved)):
                kept = set(content[name]) - {approval}
                content[name] = sorted(kept | {approval} if holds else kept)
            write_state(path, content, _FORMAT)

    def _read(self) -> dict[str, Any]:
        path = self._folder / APPROVED
        content = read_state(path, _FORMAT, _REMEDY)
        if content is None:
            return {"approved": [], "withdrawn": []}
        for name in ("approved", "withdrawn"):
            hashes = content.get(name)
            if not isinstance(hashes, list) or not all(isinstance(h, str) for h in hashes):
                raise CheckpointError(f"{path} is damaged: {_REMEDY}")
        return content
