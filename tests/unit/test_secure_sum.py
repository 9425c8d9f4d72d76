"""A masked sum: exact for whoever stays, whatever stage the others leave at and who is killed."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_sum import NAMES, STAGES, Sum, expected_sum, refused, roster_of

from nnunetv2_federated.federation.errors import RoundError, SiteError, SpoiledError
from nnunetv2_federated.secure.arithmetic import PooledTail, pool_tail, rounding_error
from nnunetv2_federated.secure.contribution import Contribution
from nnunetv2_federated.secure.server_side import ServerSide
from nnunetv2_federated.secure.shares import most_colluders, threshold, usual_minimum

FOUR = NAMES[:4]
TWENTY = tuple(f"site{number:02d}" for number in range(20))


def test_weights_are_averaged_by_cases_within_the_mask() -> None:
    parts = {
        "basel": Contribution(np.array([1.0, -2.0], np.float32), 1.0),
        "bern": Contribution(np.array([0.0, 4.0], np.float32), 2.0),
        "chur": Contribution(np.array([-1.0, 0.0], np.float32), 5.0),
    }
    asked = {"total_cases": 8, "parameters": 2, "counts": 0, "values": 0}
    mean = Sum(NAMES[:3], parts=parts, changes=asked).mean()
    # the sums -4 and 6 of eight cases
    assert mean.change.tolist() == pytest.approx([-0.5, 0.75], abs=1e-8)
    assert mean.tail.weight == 8.0


def test_a_site_that_has_done_half_a_round_counts_half() -> None:
    changes = {"basel": (3.0, 1.0), "bern": (0.0, 2.0), "chur": (0.0, 1.0 / 2)}
    parts = {n: Contribution(np.full(1, c, np.float32), w) for n, (c, w) in changes.items()}
    asked = {"total_cases": 4, "parameters": 1, "counts": 0, "values": 0}
    mean = Sum(NAMES[:3], parts=parts, changes=asked).mean()
    assert mean.change[0] == pytest.approx(3.0 / 3.5, abs=1e-7)
    assert mean.tail.weight == 3.5


def test_counts_are_added_exactly_and_losses_to_seven_digits() -> None:
    most = 2**56 - 1
    tails = [((most, 0), (-1.5,)), ((most, 7), (0.1,)), ((most, 35), (2e9,))]
    change = np.zeros(50, np.float32)
    parts = {n: Contribution(change, 10.0, *t) for n, t in zip(NAMES[:3], tails, strict=True)}
    tail = Sum(NAMES[:3], parts=parts).mean().tail
    assert tail.counts == (3 * most, 42)
    assert tail.values[0] == pytest.approx(2e9 - 1.4, abs=2e-7)


@pytest.mark.parametrize("entries", [[0, 5], [-1, 5], [2**32, -1]])
def test_sums_that_are_no_sums_of_counts_are_refused(entries: list[int]) -> None:
    total = np.array(entries, np.int64).view(np.uint64)
    with pytest.raises(SpoiledError, match="is no sum of counts: a site sent nonsense"):
        pool_tail(total, 1)
    assert pool_tail(np.array([2**31, 5, 3 * 2**24], np.uint64), 1) == PooledTail(0.5, (5,), (3.0,))


@pytest.mark.parametrize("names", [NAMES[:3], NAMES, TWENTY], ids=len)
def test_the_mean_is_the_one_of_the_rounded_changes_bit_for_bit(names: tuple[str, ...]) -> None:
    masked = Sum(names)
    mean = masked.mean()
    parts = masked.parts.values()
    assert np.array_equal(mean.change, expected_sum(parts, 10 * len(names), 8.0))
    assert mean.sites == names
    exact = sum(p.change.astype(np.float64) for p in parts) / len(names)
    error = np.abs(mean.change - exact).max()
    # half a unit of 8 / 2**31 a site, and half of float32's last digit below 1
    assert error <= len(names) * 0.5 * 8 / (2**31 - 128) + 2**-25


def test_the_error_of_a_mean_has_the_bound_that_is_told() -> None:
    # three sites, each off by half a unit: 1.5 units of 64 / (2**31 - 128) each
    assert rounding_error(3, 64.0) == pytest.approx(1.5 * 64 / 2147483520)
    assert rounding_error(3, 64.0, share=0.5) == pytest.approx(3 * 64 / 2147483520)


def test_the_largest_changes_of_all_sites_fit() -> None:
    parts = {n: Contribution(np.array([64.0, -64.0], np.float32), 10.0) for n in TWENTY}
    asked = {"parameters": 2, "counts": 0, "values": 0, "largest_change": 64.0}
    assert Sum(TWENTY, parts=parts, changes=asked).mean().change.tolist() == [64.0, -64.0]


@pytest.mark.parametrize("stage", ["state", "share", "mask", "confirm", "open"])
@pytest.mark.parametrize("lost", FOUR)
def test_one_of_four_may_leave_at_any_stage(stage: str, lost: str) -> None:
    masked = Sum(FOUR, {stage: [lost]})
    mean = masked.mean()
    before_masks = stage in ("state", "share", "mask")
    there = tuple(name for name in FOUR if name != lost or not before_masks)
    parts = [masked.parts[name] for name in there]
    assert mean.sites == there
    assert np.array_equal(mean.change, expected_sum(parts, 40, 8.0))
    assert mean.tail.counts == tuple(np.sum([p.counts for p in parts], axis=0))
    assert mean.tail.weight == 10.0 * len(there)


def test_others_may_leave_at_every_stage() -> None:
    gone = {"state": ["site00"], "share": ["site01", "site02"], "mask": ["site03"]}
    masked = Sum(TWENTY, {**gone, "confirm": ["site04"], "open": ["site05"]})
    mean = masked.mean()  # 19 have stated keys, so that 13 are needed
    assert mean.sites == tuple(name for name in TWENTY if name > "site03")
    assert np.array_equal(mean.change, expected_sum([masked.parts[n] for n in mean.sites], 200, 8))


@pytest.mark.parametrize(
    ("stage", "where"),
    [("state", "share"), ("share", "mask"), ("mask", "confirm"), ("confirm", "open")],
)
def test_too_few_sites_end_a_round_with_their_names(stage: str, where: str) -> None:
    with pytest.raises(RoundError) as refused:
        Sum(FOUR, {stage: ["bern", "chur"]}).mean()
    line = str(refused.value)
    assert line.startswith("round 1: 2 of ")
    assert f"{where!r}" in line
    assert "missing: bern, chur." in line
    assert "--c" in line


def test_a_server_asks_no_fewer_sites_than_the_minimum() -> None:
    masked = Sum(NAMES, {"share": ["thun"]}, changes={"minimum": 5})
    with pytest.raises(RoundError, match="4 of 5 sites are there for the stage 'mask', 5 are need"):
        masked.mean()


def test_too_few_sites_that_open_a_sum_end_a_round_and_may_still_come() -> None:
    masked = Sum(FOUR, {"open": ["bern", "chur"]}).up_to("open")
    with pytest.raises(
        RoundError, match="2 of 4 sites opened the sum, 3 are needed; missing: bern"
    ):
        masked.server.mean()
    opened = masked.sites["bern"].open_shares(masked.server.open_question())
    masked.server.take_opened("bern", opened)
    assert masked.server.mean().sites == FOUR


def test_more_than_two_thirds_of_a_set_are_needed() -> None:
    assert [threshold(sites) for sites in (3, 4, 5, 7, 20)] == [3, 3, 4, 5, 14]


def test_the_usual_minimum_is_more_than_two_thirds_and_three_at_least() -> None:
    assert [usual_minimum(sites) for sites in (3, 4, 5, 7, 20)] == [3, 3, 4, 5, 14]


def test_how_many_may_collude_is_of_the_set_that_a_coordinator_likes_best() -> None:
    # of 20, sets of 14 and of 16 have thresholds of 10 and 11: 2 * 10 - 14 - 1 = 2 * 11 - 16 - 1
    usual = {3: 1, 4: 1, 5: 1, 7: 2, 20: 5}
    assert {sites: most_colluders(sites, usual_minimum(sites)) for sites in usual} == usual
    assert most_colluders(20, 20) == 7
    assert most_colluders(20, 3) == 1  # of a sum of three they are two, and have the third


def test_who_comes_too_late_is_left_out() -> None:
    masked = Sum(FOUR, {"state": ["thun", "genf"]}).up_to("state")
    masked.server.take_statement("genf", masked.sites["genf"].state_keys())
    masked.share()
    late = Sum(FOUR).sites["bern"]
    with pytest.raises(SiteError, match="bern came too late: the sum is at stage share"):
        masked.server.take_statement("bern", late.state_keys())


def test_a_vector_that_comes_after_the_survivors_were_listed_is_not_added() -> None:
    masked = Sum(FOUR, {"mask": ["bern"]}).up_to("confirm")
    late = masked.sites["bern"].mask(masked.server_questions["bern"])
    with pytest.raises(SiteError, match="bern came too late"):
        masked.server.take_masked("bern", *late)
    masked.open()
    assert masked.server.mean().sites == ("basel", "chur", "genf")


SEVEN = tuple(f"site{number}" for number in range(7))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([None, *STAGES]), min_size=7, max_size=7))
def test_whoever_leaves_whenever_the_mean_is_of_the_survivors_or_there_is_none(
    leaves: list[str | None],
) -> None:
    lost = {
        stage: [n for n, s in zip(SEVEN, leaves, strict=True) if s == stage] for stage in STAGES
    }
    left = [leaves.count(stage) for stage in STAGES]
    stated = 7 - left[0]
    needed = max(3, 2 * stated // 3 + 1)
    enough = stated >= 3 and stated - sum(left[1:]) >= needed
    masked = Sum(SEVEN, lost)
    try:
        mean = masked.mean()
    except RoundError:
        assert not enough
        return
    assert enough
    early = {name for stage in STAGES[:3] for name in lost[stage]}
    assert mean.sites == tuple(name for name in SEVEN if name not in early)
    parts = [masked.parts[name] for name in mean.sites]
    assert np.array_equal(mean.change, expected_sum(parts, 70, 8.0))


# Kills


@pytest.mark.parametrize("stage", ["state", "share", "mask", "confirm", "open"])
@pytest.mark.parametrize("lost", [(), ("bern",)], ids=["all", "one lost"])
def test_a_server_that_is_killed_at_any_stage_comes_to_the_same_weights(
    stage: str, lost: tuple[str, ...]
) -> None:
    undisturbed = Sum(FOUR, {"mask": lost}).mean()
    masked = Sum(FOUR, {"mask": lost}).up_to(stage)
    masked.restart_server(with_sum=stage != "mask")
    for later in ("share", "mask", "confirm", "open"):
        order = ("state", "share", "mask", "confirm", "open")
        again = stage == "mask" and later == "mask"  # the sum was not on the disk
        if order.index(later) > order.index(stage) or again:
            getattr(masked, later)()
            if later != "mask":
                masked.restart_server(with_sum=True)
    mean = masked.server.mean()
    assert np.array_equal(mean.change, undisturbed.change)
    assert (mean.tail, mean.sites) == (undisturbed.tail, undisturbed.sites)


def mask_again(masked: Sum, name: str) -> tuple[str, bytes]:
    answer, vector = masked.sites[name].mask(masked.server.mask_questions()[name])
    return answer.to_json(), vector.tobytes()


ASKED: dict[str, Callable[[Sum, str], object]] = {
    "state": lambda masked, name: masked.sites[name].state_keys(),
    "share": lambda masked, name: masked.sites[name].share(masked.server.share_question()),
    "mask": mask_again,
    "confirm": lambda masked, name: masked.sites[name].confirm(masked.server.confirm_question()),
    "open": lambda masked, name: masked.sites[name].open_shares(masked.server.open_question()),
}


@pytest.mark.parametrize("stage", ASKED)
def test_the_same_question_gets_the_same_bytes(stage: str) -> None:
    masked = Sum(FOUR).up_to(stage)
    memory = masked.sites["bern"].memory
    first, second = (ASKED[stage](masked, "bern") for _ in range(2))
    assert first == second
    assert masked.sites["bern"].memory == memory


@pytest.mark.parametrize("stage", ASKED)
def test_a_site_that_is_killed_before_it_has_written_answers_anew(stage: str) -> None:
    undisturbed = Sum(FOUR).mean()
    masked = Sum(FOUR)
    before = list(ASKED)[: list(ASKED).index(stage)]
    if before:
        masked.up_to(before[-1])
    memory = masked.sites["bern"].memory
    ASKED[stage](masked, "bern")  # an answer that was never sent
    masked.sites["bern"].memory = memory
    for later in list(ASKED)[len(before) :]:
        getattr(masked, later)()
    assert np.array_equal(masked.server.mean().change, undisturbed.change)


@pytest.mark.parametrize("stage", ["confirm", "open"])
def test_a_server_goes_on_with_its_own_masked_sum_only(stage: str) -> None:
    masked = Sum(FOUR).up_to(stage)
    state, total = masked.server.state, masked.server.total
    assert total is not None
    line = "round 1: the masked sum is {}. This round cannot be completed; go on with the next one."
    other, longer = total.copy(), np.append(total, np.uint32(0))
    other[7] += 1
    wrong = {"another": other, "longer": longer, "signed": total.view(np.int32)}
    wrong |= {"matrix": total.reshape(5, 10)}
    for sum_ in wrong.values():
        found = refused(lambda t=sum_: ServerSide(roster_of(FOUR), state, t), SpoiledError)  # type: ignore[misc]
        assert found == line.format("not the one of this state")
    missing = refused(lambda: ServerSide(roster_of(FOUR), state), SpoiledError)
    assert missing == line.format("missing")
    ServerSide(roster_of(FOUR), state, total)


@pytest.mark.parametrize("further", [False, True])
def test_a_server_that_was_killed_while_vectors_came_asks_for_all_again(further: bool) -> None:
    """Whatever it has written: its sum may have a vector more than its state knows of."""
    masked = Sum(FOUR).up_to("share")
    questions = masked.server.mask_questions()
    masked.server.take_masked("bern", *masked.sites["bern"].mask(questions["bern"]))
    if further and masked.server.total is not None:
        masked.server.total += masked.sites["chur"].mask(questions["chur"])[1]
    masked.restart_server(with_sum=True)
    mean = masked.go(["mask", "confirm", "open"]).server.mean()
    assert np.array_equal(mean.change, Sum(FOUR).mean().change)
    assert mean.sites == FOUR


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(-64, 64, width=32), min_size=3, max_size=3),
            st.floats(0.01, 100),
        ),
        min_size=3,
        max_size=3,
    )
)
def test_any_changes_and_weights_are_within_the_bound(
    sites: list[tuple[list[float], float]],
) -> None:
    parts = {
        name: Contribution(np.array(change, np.float32), weight)
        for name, (change, weight) in zip(NAMES[:3], sites, strict=True)
    }
    asked = {"parameters": 3, "counts": 0, "values": 0, "largest_change": 64.0, "total_cases": 300}
    mean = Sum(NAMES[:3], parts=parts, changes=asked).mean()
    weights = [p.weight for p in parts.values()]
    exact = np.average(
        [p.change.astype(np.float64) for p in parts.values()], axis=0, weights=weights
    )
    bound = rounding_error(3, 64.0, math.fsum(weights) / 300)
    # a weight is told to 2**-33 of a case, and the mean in float32
    slack = 64 * (3 * 2**-33 / min(weights) + 2**-24)
    assert np.abs(mean.change - exact).max() <= bound + slack
