"""A site that spoils a sum is named, whoever is hurt by it, and ends no more than one round."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from masked_sum import NAMES, STAGES, Sum, expected_sum, refused, roster_of

from nnunetv2_federated.federation.errors import RoundError, SpoiledError
from nnunetv2_federated.secure import site_side
from nnunetv2_federated.secure.keys import SECRET_BYTES
from nnunetv2_federated.secure.messages import (
    MaskQuestion,
    ShareQuestion,
    shares_content,
    to_bytes,
    to_text,
)
from nnunetv2_federated.secure.roster import SHARES
from nnunetv2_federated.secure.server_side import ServerSide
from nnunetv2_federated.secure.server_state import ServerState
from nnunetv2_federated.secure.shares import BOX_BYTES
from nnunetv2_federated.secure.site_rules import open_own

FOUR, FIVE = NAMES[:4], NAMES


def spoil_boxes(masked: Sum, dealer: str, victims: int) -> None:
    """Change what a site has sent to the first of the others, before the server has it."""
    question = masked.server.share_question()
    for name in masked.server.state.names:
        shares = masked.sites[name].share(question)
        if name == dealer:
            boxes = bytearray(to_bytes(shares.boxes))
            for victim in range(victims):
                boxes[victim * BOX_BYTES + 20] ^= 1
            shares = replace(shares, boxes=to_text(bytes(boxes)))
        masked.server.take_shares(name, shares)


# Boxes


def test_a_box_of_another_or_changed_on_the_way_is_reported_with_its_sender() -> None:
    masked = Sum(FOUR).up_to("share")
    questions = masked.server.mask_questions()
    boxes = questions["bern"].boxes
    changed = bytearray(to_bytes(boxes["chur"].box))
    changed[20] ^= 1
    other_sum = Sum(FOUR).up_to("share").server.mask_questions()["bern"]
    wrong = {
        "swapped": boxes["genf"].box,
        "for another": questions["basel"].boxes["chur"].box,
        "changed": to_text(bytes(changed)),
        "empty": "",
        "of another sum": other_sum.boxes["chur"].box,
    }
    memory = masked.sites["bern"].memory
    for box in wrong.values():
        masked.sites["bern"].memory = memory
        question = MaskQuestion({**boxes, "chur": replace(boxes["chur"], box=box)})
        answer, _ = masked.sites["bern"].mask(question)
        assert answer.unopened == ["chur"]


def test_a_site_that_sends_bad_boxes_ends_no_round_and_is_named() -> None:
    masked = Sum(FOUR).up_to("state")
    spoil_boxes(masked, "genf", victims=2)
    masked.go(["mask", "confirm", "open"])
    assert masked.server.state.without_share_of("genf") == ["basel", "bern"]
    mean = masked.server.mean()
    assert mean.sites == FOUR
    assert np.array_equal(mean.change, expected_sum(masked.parts.values(), 40, 8.0))


@pytest.mark.parametrize("lost", ["mask", "open"])
def test_its_secret_is_rebuilt_by_those_whose_boxes_are_good(lost: str) -> None:
    masked = Sum(FIVE, {lost: ["thun"]}, changes={"minimum": 3}).up_to("state")
    spoil_boxes(masked, "genf", victims=3)  # nobody needs those: genf stays
    masked.go(["mask", "confirm", "open"])
    parts = [masked.parts[name] for name in masked.server.state.masked]
    assert np.array_equal(masked.server.mean().change, expected_sum(parts, 50, 8.0))


def test_a_site_that_sends_bad_boxes_and_leaves_ends_one_round_and_is_named() -> None:
    masked = Sum(FIVE, {"mask": ["genf"]}).up_to("state")
    spoil_boxes(masked, "genf", victims=1)
    masked.go(["mask", "confirm", "open"])
    assert refused(masked.server.mean, SpoiledError) == (
        "round 1: 3 shares of genf's secret are there, 4 are needed; basel could not use the box "
        "that genf sent. This round cannot be completed; go on with the next one."
    )


def test_shares_that_may_still_come_are_waited_for() -> None:
    lost = {"mask": ["zug"], "open": ["uri"]}
    masked = Sum((*FIVE, "uri", "zug"), lost).up_to("state")
    spoil_boxes(masked, "zug", victims=1)
    masked.go(["mask", "confirm", "open"])
    line = refused(masked.server.mean, RoundError)
    assert line == (
        "round 1: 4 shares of zug's secret are there, 5 are needed; basel could not use the box "
        "that zug sent; missing: uri. Start these sites, and go on with --c."
    )
    opened = masked.sites["uri"].open_shares(masked.server.open_question())
    masked.server.take_opened("uri", opened)
    assert masked.server.mean().sites == (*FIVE, "uri")


def test_a_report_of_boxes_that_were_not_sent_is_refused() -> None:
    masked = Sum(FOUR).up_to("share")
    answer, vector = masked.sites["bern"].mask(masked.server.mask_questions()["bern"])
    for names in (["bern"], ["zug"], ["genf", "chur"], ["chur", "chur"]):
        wrong = replace(answer, unopened=names)
        assert refused(lambda w=wrong: masked.server.take_masked("bern", w, vector)) == (  # type: ignore[misc]
            "bern reports boxes of sites that it was sent none of"
        )
    assert masked.server.total is None


# Shares


def lie(masked: Sum, liar: str, dealer: str) -> None:
    """Let a site tell a wrong share of another's secret, and see it refused."""
    server = masked.server
    opened = masked.sites[liar].open_shares(server.open_question())
    shares = bytearray(to_bytes(opened.shares))
    shares[SECRET_BYTES * server.state.held_by(liar).index(dealer)] ^= 1
    wrong = replace(opened, shares=to_text(bytes(shares)))
    line = f"{liar} told another share of {dealer}'s secret than it was given"
    assert refused(lambda: server.take_opened(liar, wrong)) == line


@pytest.mark.parametrize("dealer", ["thun", "chur"])
def test_who_tells_a_wrong_share_is_named_and_done_without(dealer: str) -> None:
    """Of thun, whose vector never came, it is a share of the pair key; of chur of its own mask."""
    seven, lost = (*NAMES, "uri", "zug"), {"mask": ["thun"], "open": ["bern"]}
    masked = Sum(seven, lost).up_to("open")
    lie(masked, "bern", dealer)
    assert masked.server.mean().sites == tuple(name for name in seven if name != "thun")


def test_a_share_of_the_wrong_kind_is_refused() -> None:
    """Whoever tells of a survivor what is told of one that was lost would open its update."""
    masked = Sum(FOUR, {"open": ["bern"]}).up_to("open")
    state = masked.sites["bern"].state
    told = [open_own(state, name, state.boxes.get(name, ""))[SECRET_BYTES:] for name in FOUR]
    opened = masked.sites["bern"].open_shares(masked.server.open_question())
    wrong = replace(opened, shares=to_text(b"".join(told)))
    assert refused(lambda: masked.server.take_opened("bern", wrong)) == (
        "bern told another share of basel's secret than it was given"
    )


def deal_nonsense(masked: Sum, dealer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a site deal shares that belong to no secret, listed and signed as they are."""
    question = masked.server.share_question()
    for name in masked.server.state.names:
        with monkeypatch.context() as patch:
            if name == dealer:
                patch.setattr(
                    site_side, "split", lambda _, sites: [os.urandom(16) for _ in range(sites)]
                )
            masked.server.take_shares(name, masked.sites[name].share(question))


def test_who_deals_shares_of_nothing_and_leaves_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    masked = Sum(FIVE, {"mask": ["genf"]}).up_to("state")
    deal_nonsense(masked, "genf", monkeypatch)
    masked.go(["mask", "confirm", "open"])
    assert refused(masked.server.mean, SpoiledError) == (
        "round 1: the shares that genf has dealt do not give the secret that it has stated. This "
        "round cannot be completed; go on with the next one."
    )


def test_who_lists_other_shares_than_it_deals_is_reported_by_all() -> None:
    masked = Sum(FOUR).up_to("state")
    question = masked.server.share_question()
    for name in FOUR:
        shares = masked.sites[name].share(question)
        if name == "genf":
            digests = to_text(bytes(len(to_bytes(shares.digests))))
            content = shares_content(masked.server.state.context, digests)
            signature = masked.sites["genf"].side._member.sign(SHARES, content)
            shares = replace(shares, digests=digests, signature=signature)
        masked.server.take_shares(name, shares)
    masked.mask()
    assert masked.server.state.without_share_of("genf") == ["basel", "bern", "chur"]


def test_a_list_of_shares_is_signed_by_its_dealer_and_whole() -> None:
    masked = Sum(FOUR).up_to("state")
    shares = masked.sites["genf"].share(masked.server.share_question())
    digests = to_bytes(shares.digests)
    forged = replace(shares, digests=to_text(digests[::-1]))
    line = "refused: genf has not signed this list of shares"
    assert refused(lambda: masked.server.take_shares("genf", forged)) == line
    short = replace(shares, digests=to_text(digests[:-64]))
    assert refused(lambda: masked.server.take_shares("genf", short)) == (
        "refused: genf sent 192 bytes of shares, not 64 for each of 4 sites"
    )
    masked.share()
    question = masked.server.mask_questions()["bern"]
    dealt = replace(question.boxes["genf"], digests=forged.digests)
    changed = MaskQuestion({**question.boxes, "genf": dealt})
    assert refused(lambda: masked.sites["bern"].mask(changed)) == line


# Refusals


def test_why_sites_have_refused_is_told_and_whether_it_can_go_on() -> None:
    masked = Sum(FOUR, {"mask": ["bern", "chur"]}).up_to("mask")
    masked.server.take_refusal("bern", "refused: another roster\nERROR")
    assert refused(masked.server.confirm_question, RoundError) == (
        "round 1: 2 of 4 sites are there for the stage 'confirm', 3 are needed; missing: chur; "
        "refused: bern (refused: another roster ERROR). Start the missing sites, and go on with "
        "--c."
    )
    masked.server.take_refusal("chur", "refused: too few")
    assert refused(masked.server.confirm_question, SpoiledError) == (
        "round 1: 2 of 4 sites are there for the stage 'confirm', 3 are needed; refused: bern "
        "(refused: another roster ERROR), chur (refused: too few). This round cannot be completed; "
        "go on with the next one."
    )


# Names


@pytest.mark.parametrize("stage", STAGES)
def test_no_site_answers_in_the_name_of_another(stage: str) -> None:
    """Else its victim, which is then one that has answered twice, would be named."""
    masked = Sum(FOUR, {stage: ["bern"]}).up_to(stage)
    bern, server = masked.sites["bern"], masked.server
    answers: dict[str, Callable[[str], object]] = {
        "state": lambda sender: server.take_statement(sender, bern.state_keys()),
        "share": lambda sender: server.take_shares(sender, bern.share(server.share_question())),
        "mask": lambda sender: server.take_masked(
            sender, *bern.mask(masked.server_questions["bern"])
        ),
        "confirm": lambda sender: server.take_confirmed(
            sender, bern.confirm(server.confirm_question())
        ),
        "open": lambda sender: server.take_opened(sender, bern.open_shares(server.open_question())),
    }
    before = server.state
    assert refused(lambda: answers[stage]("genf")) == "genf answered in the name of bern"
    assert server.state == before
    answers[stage]("bern")  # it comes all the same


def test_keys_of_an_attempt_before_are_not_taken_in_the_next() -> None:
    """Its site has gone on, and would refuse the set with them."""
    masked = Sum(FOUR)
    old = masked.sites["bern"].state_keys(attempt=0)
    new = {name: site.state_keys(attempt=1) for name, site in masked.sites.items()}
    server = ServerSide(roster_of(FOUR), ServerState(masked.terms, attempt=1))
    line = "refused: the keys of bern are for attempt 1, here it is 2"
    assert refused(lambda: server.take_statement("bern", old)) == line
    for name in FOUR:
        server.take_statement(name, new[name])
    question = ShareQuestion([old, *(new[name] for name in FOUR if name != "bern")])
    assert refused(lambda: masked.sites["chur"].share(question)) == line
    masked.server = server
    masked.go(["share", "mask", "confirm", "open"])
    assert server.mean().sites == FOUR


# The next round


def more_cases_than_there_are(masked: Sum) -> Sum:
    """Let somebody have masked a weight that is one case too many."""
    tail = list(masked.server.state.tail)
    tail[0] = (tail[0] + 2**32) % 2**64
    masked.server.state = replace(masked.server.state, tail=tail)
    return masked.go(["confirm", "open"])


def test_a_sum_of_more_cases_than_there_are_spoils_its_round_also_after_a_kill() -> None:
    masked = more_cases_than_there_are(Sum(FOUR).up_to("mask"))
    total = masked.server.total
    assert total is not None
    before = total.copy()
    for _ in range(2):
        assert refused(masked.server.mean, SpoiledError) == (
            "round 1: the sites' weights add up to 41 cases, but all sites together have 40: a "
            "site sent nonsense. This round cannot be completed; go on with the next one."
        )
        assert np.array_equal(masked.server.total, before)  # not one mask is off
        masked.restart_server(with_sum=True)


def test_after_a_round_that_was_spoiled_the_next_goes_on_from_the_same_model() -> None:
    spoiled = more_cases_than_there_are(Sum(FOUR).up_to("mask"))
    refused(spoiled.server.mean, SpoiledError)
    following = Sum(FOUR, changes={"server_round": 1})
    assert following.terms.model == spoiled.terms.model
    for name, site in following.sites.items():
        site.memory = spoiled.sites[name].memory
    mean = following.mean()
    assert np.array_equal(mean.change, expected_sum(following.parts.values(), 40, 8.0))
    again = spoiled.sites["bern"]  # and the one that was masked stays closed
    again.memory = following.sites["bern"].memory
    assert refused(again.state_keys) == "refused round 1: this site has gone on to round 2"
