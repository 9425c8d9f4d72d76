"""Norms, directions and the bound of updates, with numbers worked out by hand."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_federated.federation.history import RoundRecord, UpdateRecord
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.federation.update_bound import UpdateBound, accepted_norms
from nnunetv2_federated.federation.update_norms import (
    SKETCH_SIZE,
    cosines_with_others,
    measure_update,
    shorten_update,
)

LARGEST_FLOAT32 = 3.4028235e38


def vector(*values):
    return np.array(values, np.float32)


# Norms and cosines


def test_a_norm_by_hand():
    norm, direction = measure_update(vector(4, 3, 1), vector(1, -1, 1))
    assert norm == 5.0  # of (3, 4, 0)
    assert np.linalg.norm(direction) == pytest.approx(1, rel=1e-6)


def test_a_norm_of_many_values():
    sent = np.full(3 * SKETCH_SIZE + 7, 0.25, np.float32)
    norm, _ = measure_update(sent + np.float32(0.5), sent)
    assert norm == pytest.approx(0.5 * math.sqrt(3 * SKETCH_SIZE + 7), rel=1e-12)


def test_finite_weights_overflow_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        size = SKETCH_SIZE + 100
        sent = np.full(size, -LARGEST_FLOAT32, np.float32)
        norm, direction = measure_update(-sent, sent)
    assert norm == pytest.approx(2 * LARGEST_FLOAT32 * math.sqrt(size), rel=1e-6)
    assert np.isfinite(direction).all()


def test_no_change_has_no_direction():
    norm, direction = measure_update(vector(1, 2), vector(1, 2))
    assert norm == 0
    assert not direction.any()


def test_cosines_by_hand():
    start = vector(1, 1)
    updates = [vector(1, 0), vector(1, 1), vector(0, 2)]
    measured = [measure_update(start + update, start) for update in updates]
    lengths = [weight * norm for weight, (norm, _) in zip((1, 2, 1), measured, strict=True)]
    cosines = cosines_with_others([direction for _, direction in measured], lengths)
    expected = [
        2 / math.sqrt(2**2 + 4**2),  # (1, 0) and 2 (1, 1) + (0, 2) = (2, 4)
        3 / (math.sqrt(2) * math.sqrt(5)),  # (1, 1) and (1, 2)
        2 / math.sqrt(3**2 + 2**2),  # (0, 2) and (1, 0) + 2 (1, 1) = (3, 2)
    ]
    assert cosines == pytest.approx(expected, abs=1e-6)


def test_a_refused_update_is_compared_and_not_counted():
    directions = [measure_update(vector(*v), vector(0, 0))[1] for v in ((1, 0), (1, 0), (-1, 0))]
    assert cosines_with_others(directions, [1.0, 1.0, 0.0]) == pytest.approx([1, 1, -1])


def test_alone_there_is_nothing_to_compare():
    _, direction = measure_update(vector(1, 0), vector(0, 0))
    nothing = np.zeros_like(direction)
    assert cosines_with_others([], []) == []
    assert all(map(math.isnan, cosines_with_others([direction], [1.0])))
    assert all(map(math.isnan, cosines_with_others([direction, nothing], [1.0, 0.0])))


def strided(start):
    """Every 2 * SKETCH_SIZE-th value: rows that were not rotated would pile up in one place."""
    values = np.zeros(40 * SKETCH_SIZE, np.float32)
    values[start :: 2 * SKETCH_SIZE] = 1
    return values


RNG = np.random.default_rng(5)
NOISE = [RNG.standard_normal(200_000).astype(np.float32) for _ in range(2)]
HEAVY = [RNG.standard_cauchy(200_000).astype(np.float32) for _ in range(2)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (NOISE[0], NOISE[1]),
        (NOISE[0], (0.6 * NOISE[0] + 0.8 * NOISE[1])),
        (NOISE[0], -NOISE[0] + 0.1 * NOISE[1]),
        (np.ones_like(NOISE[0]), NOISE[0]),
        (np.ones_like(NOISE[0]), np.repeat(vector(1, -1), 100_000)),
        (HEAVY[0], HEAVY[1]),
        (strided(0), strided(SKETCH_SIZE)),
    ],
    ids=["noise", "0.6", "opposite", "constant", "half", "heavy tails", "strided"],
)
def test_a_sketched_cosine_is_as_close_as_stated(one, other):
    """Within four standard deviations of what the docstring states: 4 * sqrt(2 / 16381)."""
    exact = np.dot(one.astype(float), other.astype(float))
    exact /= np.linalg.norm(one.astype(float)) * np.linalg.norm(other.astype(float))
    start = np.zeros_like(one)
    measured = [measure_update(update.astype(np.float32), start) for update in (one, other)]
    sketched = cosines_with_others([direction for _, direction in measured], [1.0, 1.0])
    assert sketched == pytest.approx([exact, exact], abs=4 * math.sqrt(2 / SKETCH_SIZE))


def test_shortened_by_hand():
    assert shorten_update(vector(4, 3), vector(1, -1), 0.5).tolist() == [2.5, 1.0]
    huge = vector(LARGEST_FLOAT32, -LARGEST_FLOAT32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shortened = shorten_update(huge, -huge, 1e-38)
    assert np.isfinite(shortened).all()


# The bound

START = np.zeros(2, np.float32)


@dataclass
class Reply:
    site: str
    vector: np.ndarray
    weight: float = 1.0


def replies(norms):
    """Sites a, b, c ... whose updates have these norms."""
    return [Reply(chr(ord("a") + i), vector(0, norm)) for i, norm in enumerate(norms)]


def outcomes(bound, norms):
    list(bound.apply(replies(norms), START))
    return "".join(update.outcome[0] for update in bound.updates.values())


def auto(*, clip=False, earlier=()):
    return UpdateBound("auto", clip=clip, earlier=earlier)


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        ([1, 1, 1, 10], "aaaa"),  # ten times the median is allowed
        ([1, 1, 1, 10.5], "aaar"),
        ([1e30, 1, 1.2, 1], "raaa"),  # being first does not help
        ([1, 1e30, 1.2, 1], "araa"),
        ([1, 1.2, 1e30, 1], "aara"),
        ([1, 1.2, 1, 1e30], "aaar"),
        ([20, 1, 1, 1], "raaa"),
        ([1e-30, 1, 1, 1], "aaaa"),  # nor does being small
        ([0, 1, 1, 1, 20], "aaaar"),  # what changes nothing does not count
        ([0, 0, 0, 1], "aaaa"),
        ([1, 20], "aa"),  # two cannot tell who is odd
        ([1, 1e30], "ar"),  # but no training does that
        ([1e30, -1e30, 1, 1, 1], "rraaa"),
        ([], ""),
    ],
)
def test_auto_in_the_first_round(norms, expected):
    assert outcomes(auto(), norms) == expected


@pytest.mark.parametrize("position", range(5))
def test_auto_in_a_later_round(position):
    bound = auto()
    assert outcomes(bound, [1, 2, 3, 2, 2]) == "aaaaa"
    norms = [2.0] * 5
    norms[position] = 25
    assert outcomes(bound, norms) == "a" * position + "r" + "a" * (4 - position)


def test_a_site_cannot_lift_the_bound_step_by_step():
    bound = auto()
    found = [outcomes(bound, [norm, 1, 1, 1, 1]) for norm in (1, 8, 64, 512)]
    assert found == ["aaaaa", "aaaaa", "raaaa", "raaaa"]


def test_when_all_updates_grow_all_are_accepted():
    """As after a large step of the server's optimizer: it is not the sites that are odd."""
    bound = auto()
    assert outcomes(bound, [1, 1, 1, 1]) == "aaaa"
    assert outcomes(bound, [50, 40, 60, 5000]) == "aaar"


def test_sites_sampled_one_by_one_are_judged_by_earlier_rounds():
    bound = auto()
    assert [outcomes(bound, [norm]) for norm in (1, 1, 1, 11, 9)] == ["a", "a", "a", "r", "a"]


@pytest.mark.parametrize(
    ("limit", "norms", "expected"),
    [
        (2.0, [2.0, 2.1], "ar"),
        ("none", [1, 1, 1, 1e11], "aaaa"),
        ("none", [1, 1, 1, 1e13], "aaar"),
        (1e30, [1e13], "r"),
    ],
)
def test_a_number_or_none(limit, norms, expected):
    assert outcomes(UpdateBound(limit, clip=False), norms) == expected


@pytest.mark.parametrize(("sites", "expected"), [(1, "aaaa"), (2, "aaaa"), (3, "aaar")])
def test_auto_needs_three_sites(sites, expected):
    bound = UpdateBound.of(FederationSettings(), sites, [1.0, 1.0, 1.0])
    assert outcomes(bound, [1, 1, 1, 11]) == expected


def test_clipped_to_the_bound():
    bound = auto(clip=True)
    (*_, last) = bound.apply(replies([1, 1, 1, 40]), START)
    assert last.vector.tolist() == [0, 10]  # ten times the median
    assert bound.record()["d"] == UpdateRecord(40.0, 1.0, 10.0, "clipped")
    assert bound.refusal("d") is None
    # what no training does is not even clipped
    assert outcomes(bound, [1, 1, 1, 1e30]) == "aaar"


def test_why_it_was_refused():
    bound = auto()
    outcomes(bound, [1, 1, 1, 40])
    assert bound.refusal("a") is None
    assert bound.refusal("d") == (
        "its update has a norm of 40, "
        "at most 10 is allowed by --max-update-norm auto, 10 times the usual"
    )
    bound = UpdateBound("none", clip=True)
    outcomes(bound, [1e30])
    assert bound.refusal("a") == "its update has a norm of 1e+30, at most 1e+12 is allowed"


def trace(bound, norms):
    """What happens in which order: A a site's reply is fetched, a it is passed on."""
    events = []

    def fetched():
        for reply in replies(norms):
            events.append(reply.site.upper())
            yield reply

    events.extend(reply.site for reply in bound.apply(fetched(), START))
    return "".join(events)


def test_replies_are_held_back_only_as_long_as_needed():
    bound = auto()
    assert trace(bound, [1, 1, 1, 1, 1]) == "ABCabcDdEe"  # nobody knows yet what is usual
    assert trace(bound, [1, 1, 1, 1, 1]) == "AaBbCcDdEe"
    assert trace(bound, [90, 1, 1, 1, 1]) == "ABCabcDdEe"  # perhaps all have grown
    assert trace(bound, [1, 90, 1, 1, 1]) == "AaBCbcDdEe"
    assert trace(bound, [1, 1, 1, 90, 1]) == "AaBbCcDdEe"
    assert trace(UpdateBound("none", clip=False), [1, 90, 1]) == "AaBbCc"
    assert trace(UpdateBound(1.0, clip=False), [1, 90, 1]) == "AaBbCc"


norms_of_a_round = st.lists(
    st.one_of(st.just(0.0), st.floats(1e-3, 1e3), st.floats(1e3, 1e30)), min_size=1, max_size=6
)


@settings(max_examples=200, deadline=None)
@given(rounds=st.lists(norms_of_a_round, min_size=2, max_size=5), clip=st.booleans())
def test_a_continued_run_judges_as_an_uninterrupted_one(rounds, clip):
    whole = auto(clip=clip)
    records = []
    for norms in rounds:
        list(whole.apply(replies(norms), START))
        records.append(RoundRecord(len(records), updates=whole.record()))
    stored = [
        RoundRecord.from_plain(json.loads(json.dumps(record.to_plain()))) for record in records[:-1]
    ]
    # the first is of an older version, without updates
    resumed = auto(clip=clip, earlier=accepted_norms([RoundRecord(0), *stored]))
    list(resumed.apply(replies(rounds[-1]), START))
    assert resumed.record() == records[-1].updates
