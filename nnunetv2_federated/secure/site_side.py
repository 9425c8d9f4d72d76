"""A site's part in a masked sum: what it answers in each stage, and what it refuses.

Every method takes what the site remembers and a question, and returns what it remembers from then
on and the answer. Nothing is kept here: a site that was killed goes on with the state on its disk.
The same question gets the same answer. What the rules are for:

- Secrets are shared once, for one set of statements. Shared for two sets, one set could be told a
  site's pair key and the other one its own mask: together that is its update.
- An update is masked once, for one set of sites, and all survivors have masked for the same set.
- A site hears of one list of survivors, and opens it after enough others have signed the same list.
- Of each site it tells one share: of the own mask's secret, or of the pair key's. What it tells of
  itself is its own mask's, for it is a survivor of the list that it has signed.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace

from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.secure.arithmetic import tail_bytes
from nnunetv2_federated.secure.contribution import Contribution, Tensor
from nnunetv2_federated.secure.keys import SECRET_BYTES, MaskKeys, agree, commitment, public_hex
from nnunetv2_federated.secure.masking import masks_of, put_on
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
    shares_content,
    to_text,
)
from nnunetv2_federated.secure.roster import CONFIRMED, MASKED, SHARES, STATEMENT, Member
from nnunetv2_federated.secure.shares import close_box, digests_of, split, threshold
from nnunetv2_federated.secure.site_rules import (
    check_boxes,
    check_known,
    check_minimum,
    check_order,
    check_set,
    check_size,
    open_own,
    unopened,
)
from nnunetv2_federated.secure.site_state import MaskedStep, SiteState, Step


class SiteSide:
    """Answers for one site.

    Parameters
    ----------
    member
        The site with its key, and the roster that its engineer has approved.
    least
        Least minimum of a sum's sites that the engineer allows; ``None`` for the usual one of the
        roster, more than two thirds of its sites.
    """

    def __init__(self, member: Member, least: int | None = None) -> None:
        self._member = member
        self._least = least

    def state_keys(
        self,
        terms: RoundTerms,
        contribution: Contribution,
        before: SiteState | None,
        *,
        attempt: int = 0,
        tensors: Sequence[Tensor] = (),
    ) -> Step[Statement]:
        """Make keys for a round's sum, once the site has trained.

        Parameters
        ----------
        terms
            What the site's engineer has approved and the site has been asked, as it knows itself.
        contribution
            What is to be masked.
        before
            What the site remembers; ``None`` in the first round of all.
        attempt
            Number of the attempt; a further one has new keys.
        tensors
            Places of the tensors, to name one whose change does not fit.

        Raises
        ------
        SiteError
            If the roster or the minimum is not as approved, the update cannot be added, or the site
            has masked one of this round or a later one.
        """
        if terms.roster != self._member.roster.hash():
            raise SiteError("refused: the round is of another roster than this site has approved")
        check_minimum(terms, self._member.roster, self._least)
        contribution.check(terms, tensors)
        update = contribution.digest()
        if before is not None:
            check_order(before, terms, attempt)
            if (before.terms, before.statement.attempt) == (terms, attempt):
                if before.masked is not None and before.update != update:
                    raise SiteError("refused: this site has masked another update of this round")
                return Step(replace(before, update=update), before.statement)
        statement, pair, box, own = self._new_keys(terms, attempt)
        past = before.masked_rounds if before is not None else {}
        return Step(SiteState(statement, update, pair, box, own, past=past), statement)

    def _new_keys(self, terms: RoundTerms, attempt: int) -> tuple[Statement, str, str, str]:
        """Return a signed statement of new keys, and the secrets of them."""
        pair, box, own = (secrets.token_bytes(SECRET_BYTES) for _ in range(3))
        unsigned = {
            "site": self._member.name,
            "terms": terms,
            "attempt": attempt,
            "pair_key": public_hex(pair),
            "box_key": public_hex(box),
            "self_commitment": commitment(own),
        }
        signed = self._member.sign(STATEMENT, {**unsigned, "terms": asdict(terms)})
        statement = Statement(**unsigned, signature=signed)  # type: ignore[arg-type]  # checked
        return statement, pair.hex(), box.hex(), own.hex()

    def share(self, state: SiteState, question: ShareQuestion) -> Step[Shares]:
        """Check who takes part, and give each of them a share of the site's two secrets.

        Raises
        ------
        SiteError
            If the set is too small, a statement is forged, or of another round or other terms; or
            the site has shared for another set.
        """
        everybody = sorted(question.statements, key=lambda statement: statement.site)
        if state.sent is not None:
            if everybody != state.statements:
                raise SiteError("refused: this site has shared its secrets with another set")
            return Step(state, state.sent)
        check_set(state, everybody, self._member.roster)
        own, pair = (
            split(bytes.fromhex(secret), len(everybody))
            for secret in (state.self_secret, state.pair_secret)
        )
        names = [statement.site for statement in everybody]
        kept = dict(zip(names, (o + p for o, p in zip(own, pair, strict=True)), strict=True))
        shared = replace(state, statements=everybody, own_shares=kept.pop(state.site).hex())
        boxes = b"".join(self._box(shared, name, content) for name, content in kept.items())
        digests = to_text(digests_of(own, pair))
        signed = self._member.sign(SHARES, shares_content(shared.context, digests))
        answer = Shares(state.site, to_text(boxes), digests, signed)
        return Step(replace(shared, sent=answer), answer)

    @staticmethod
    def _box(state: SiteState, name: str, content: bytes) -> bytes:
        agreed = agree(bytes.fromhex(state.box_secret), state.by_name[name].box_key, name)
        return close_box(content, agreed, (state.site, name), state.context)

    def mask(
        self, state: SiteState, question: MaskQuestion, contribution: Contribution
    ) -> MaskedStep:
        """Mask the update for the sites whose boxes have come, and for this one.

        Raises
        ------
        SiteError
            If they are too few or others than the site has shared its secrets with, or the site
            has masked for others before, or another update. A box that it cannot open is no reason
            to refuse: the answer names its sender.
        """
        if not state.statements:
            raise SiteError("refused: this site has not shared its secrets")
        if contribution.digest() != state.update:
            raise SiteError(
                "refused: the update on the disk is not the one that keys were made for"
            )
        boxes = {name: dealt.box for name, dealt in question.boxes.items()}
        if state.masked is None:
            check_boxes(state, question.boxes, self._member.roster)
        elif boxes != state.boxes:
            raise SiteError("refused: this site has masked its update for others before")
        vector, tail = contribution.ring(state.terms), contribution.tail()
        put_on(vector, tail, self._masks(state, boxes))
        if state.masked is not None:
            return MaskedStep(state, state.masked, vector)
        content = masked_content(state.context, sorted([*boxes, state.site]))
        signed = self._member.sign(MASKED, content)
        spoiled = unopened(state, question.boxes)
        answer = Masked(state.site, to_text(tail_bytes(tail)), signed, spoiled)
        return MaskedStep(replace(state, boxes=boxes, masked=answer), answer, vector)

    @staticmethod
    def _masks(state: SiteState, others: Collection[str]) -> list[tuple[int, MaskKeys]]:
        context, stated = state.context, state.by_name
        secret = bytes.fromhex(state.pair_secret)
        own = MaskKeys.of_self(bytes.fromhex(state.self_secret), context)
        pairs = {
            name: MaskKeys.of_pair(
                agree(secret, stated[name].pair_key, name), context, state.site, name
            )
            for name in others
        }
        return masks_of(state.site, own, pairs)

    def confirm(self, state: SiteState, question: ConfirmQuestion) -> Step[Confirmed]:
        """Sign whose vectors have come; no other list is heard of from then on.

        Raises
        ------
        SiteError
            If they are too few, others than the site has masked for, or one of them has masked for
            another set; or the site has signed another list.
        """
        if state.masked is None:
            raise SiteError("refused: this site has masked nothing")
        if state.survivors:
            if question.masked != state.survivors:
                raise SiteError("refused: this site has confirmed other survivors before")
            return Step(state, Confirmed(state.site, state.confirmed))
        check_known(question.masked, state.masked_for, "among those it masked for")
        if state.site not in question.masked:
            raise SiteError("refused: this site is not among the survivors")
        check_size(len(question.masked), state.fewest, "the list of survivors")
        names, context = state.masked_for, state.context
        for name, signature in question.masked.items():
            self._member.roster.verify(name, MASKED, masked_content(context, names), signature)
        signed = self._member.sign(CONFIRMED, confirmed_content(context, names, question.masked))
        after = replace(state, survivors=question.masked, confirmed=signed)
        return Step(after, Confirmed(state.site, signed))

    def open_shares(self, state: SiteState, question: OpenQuestion) -> Step[Opened]:
        """Tell the shares that take the masks off the sum of the survivors, and off nothing else.

        Raises
        ------
        SiteError
            If the site has confirmed nothing, or too few survivors have signed the same list.
        """
        if not state.survivors:
            raise SiteError("refused: this site has confirmed no survivors")
        check_known(question.confirmed, state.survivors, "among the survivors")
        check_size(len(question.confirmed), threshold(len(state.names)), "the list of signatures")
        content = confirmed_content(state.context, state.masked_for, state.survivors)
        for name, signature in question.confirmed.items():
            self._member.roster.verify(name, CONFIRMED, content, signature)
        told = [
            pair[:SECRET_BYTES] if name in state.survivors else pair[SECRET_BYTES:]
            for name in state.opens
            for pair in [open_own(state, name, state.boxes.get(name, ""))]
        ]
        return Step(state, Opened(state.site, to_text(b"".join(told)), state.self_secret))
