"""A site that spoils a sum is named, whoever is hurt by it, and ends no more than one round."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from masked_sum import NAMES, Sum, expected_sum, refused

from nnunetv2_federated.federation.errors import RoundError, SpoiledError
from nnunetv2_federated.secure.messages import MaskQuestion, to_bytes, to_text
from nnunetv2_federated.secure.shares import BOX_BYTES

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
        masked.server.take_shares(shares)


# Boxes


def test_a_box_of_another_or_changed_on_the_way_is_reported_with_its_sender() -> None:
    masked = Sum(FOUR).up_to("share")
    questions = masked.server.mask_questions()
    boxes = questions["bern"].boxes
    changed = bytearray(to_bytes(boxes["chur"]))
    changed[20] ^= 1
    wrong = {
        "swapped": {**boxes, "chur": boxes["genf"]},
        "for another": {**boxes, "chur": questions["basel"].boxes["chur"]},
        "changed": {**boxes, "chur": to_text(bytes(changed))},
        "empty": {**boxes, "chur": ""},
        "of another sum": {
            **boxes,
            "chur": Sum(FOUR).up_to("share").server.mask_questions()["bern"].boxes["chur"],
        },
    }
    memory = masked.sites["bern"].memory
    for what in wrong.values():
        masked.sites["bern"].memory = memory
        answer, _ = masked.sites["bern"].mask(MaskQuestion(what))
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
    masked.server.take_opened(opened)
    assert masked.server.mean().sites == (*FIVE, "uri")


def test_a_report_of_boxes_that_were_not_sent_is_refused() -> None:
    masked = Sum(FOUR).up_to("share")
    answer, vector = masked.sites["bern"].mask(masked.server.mask_questions()["bern"])
    for names in (["bern"], ["zug"], ["genf", "chur"], ["chur", "chur"]):
        wrong = replace(answer, unopened=names)
        assert refused(lambda w=wrong: masked.server.take_masked(w, vector)) == (  # type: ignore[misc]
            "bern reports boxes of sites that it was sent none of"
        )
    assert masked.server.total is None


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
