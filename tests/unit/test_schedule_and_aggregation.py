from __future__ import annotations

import math

import numpy as np
import pytest

from nnunetv2_federated.federation.aggregation import (
    _BLOCK,
    RunningMean,
    dice_per_class,
    is_finite,
    mean_dice,
    weighted_mean,
)
from nnunetv2_federated.federation.learning_rates import Schedule, poly_lr, read_schedule

LONG = 2 * _BLOCK + 3  # three blocks, the last of 3 values


@pytest.mark.parametrize(
    ("server_round", "lr"),
    [(0, 0.01), (60, 0.005358867312681466), (119, 0.0001345045198718386)],
)
def test_learning_rate_of_a_round(server_round, lr):
    assert poly_lr(server_round, 120, 0.01) == pytest.approx(lr, rel=1e-12, abs=0)


def test_the_schedule_is_nnunets_with_rounds_for_epochs():
    import torch  # noqa: PLC0415
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler  # noqa: PLC0415

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.01)
    scheduler = PolyLRScheduler(optimizer, 0.01, 7)
    for epoch in range(7):
        scheduler.step(epoch)
        assert poly_lr(epoch, 7, 0.01) == optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("server_round", [-1, 120, 121])
def test_a_round_outside_the_federation_has_no_learning_rate(server_round):
    with pytest.raises(ValueError, match=r"outside 0 \.\. 119"):
        poly_lr(server_round, 120, 0.01)


@pytest.mark.parametrize(
    ("rates", "declared", "lrs", "shares"),
    [
        ([[0.01], [0.005]], [0.01], (0.01, 0.005), (1.0,)),
        # the scheduler keeps a ratio; whoever learns fastest says the rate
        ([[0.001, 0.004], [0.002, 0.008]], [0.1, 0.1], (0.004, 0.008), (0.25, 1.0)),
        # the scheduler flattens what was declared
        ([[0.01] * 2, [0.005] * 2], [0.001, 0.01], (0.01, 0.005), (0.1, 1.0)),
        # and while it warms up, from the trainer's 0.02
        ([[0.001] * 2, [0.002] * 2], [0.002, 0.02], (0.001, 0.002), (0.1, 1.0)),
        # two groups for their weight decay alone
        ([[0.01] * 2, [0.005] * 2], [0.3, 0.3], (0.01, 0.005), (1.0, 1.0)),
        ([[0.0, 0.0]], [0.1, 0.1], (0.0,), (1.0, 1.0)),
    ],
)
def test_a_schedule_is_read_from_rates(rates, declared, lrs, shares):
    schedule = read_schedule(rates, declared, 0.02)
    assert schedule.lrs == lrs
    assert schedule.shares == pytest.approx(shares, rel=1e-12)


def test_groups_must_keep_their_ratios():
    with pytest.raises(ValueError, match="ratios change in epoch 0"):
        read_schedule([[0.001, 0.01], [0.02, 0.02]], [0.01, 0.01], 0.01)


@pytest.mark.parametrize("lr", [1.5, -0.1, math.nan, math.inf])
def test_a_rate_that_no_message_carries_is_none(lr):
    with pytest.raises(ValueError, match="in round 1, not 0 to 1"):
        Schedule((0.1, lr), (1.0,))


def test_poly_in_place_of_another_schedule():
    poly = Schedule((0.5, 0.5), (0.25, 1.0)).with_poly(0.01)
    assert poly.lrs == pytest.approx((0.01, 0.005358867312681466), rel=1e-12)
    assert poly.shares == (0.25, 1.0)
    assert poly.is_poly(0.01)
    assert not poly.is_poly(0.02)
    assert not Schedule((0.01, 0.01), (1.0,)).is_poly(0.01)


@pytest.mark.parametrize("weight", [1.0, 3.0, 0.1])
@pytest.mark.parametrize("size", [1, _BLOCK, LONG])
def test_mean_of_one_vector_is_that_vector(size, weight):
    vector = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    before = vector.tobytes()
    mean = RunningMean()
    mean.add(vector, weight)
    assert mean.result().tobytes() == before
    assert mean.result() is not vector


def test_mean_by_hand():
    mean = RunningMean()
    for vector, weight in (([1, 2, -4], 1), ([3, 0, 0], 2), ([5, 2, 4], 5)):
        mean.add(np.array(vector, np.float32), weight)
    # sums of 1 + 6 + 25, 2 + 0 + 10 and -4 + 0 + 20, over 8
    np.testing.assert_allclose(mean.result(), [4.0, 1.5, 2.0], rtol=1e-6)
    assert mean.result().dtype == np.float32
    assert mean.total_weight == 8


def test_mean_reaches_every_block_and_leaves_the_vectors_alone():
    rng = np.random.default_rng(1)
    vectors = [rng.standard_normal(LONG).astype(np.float32) for _ in range(4)]
    kept = [vector.copy() for vector in vectors]
    mean = RunningMean()
    for vector, weight in zip(vectors, (1, 2, 3, 4), strict=True):
        mean.add(vector, weight)
    exact = np.average(np.array(kept, np.float64), axis=0, weights=(1, 2, 3, 4))
    np.testing.assert_allclose(mean.result(), exact, rtol=0, atol=1e-6)
    for vector, copy in zip(vectors, kept, strict=True):
        np.testing.assert_array_equal(vector, copy)


def test_mean_does_not_overflow_or_depend_on_the_scale_of_weights():
    """Summing first and dividing last would give infinity here."""
    big = np.full(2, 3e38, np.float32)
    mean = RunningMean()
    for _ in range(3):
        mean.add(big, 1e6)
    np.testing.assert_array_equal(mean.result(), big)


def test_the_order_of_vectors_matters_no_more_than_rounding():
    rng = np.random.default_rng(2)
    pairs = [(rng.standard_normal(1000).astype(np.float32), w) for w in (1.0, 7.0, 40.0)]
    forth, back = RunningMean(), RunningMean()
    for vector, weight in pairs:
        forth.add(vector, weight)
    for vector, weight in reversed(pairs):
        back.add(vector, weight)
    np.testing.assert_allclose(forth.result(), back.result(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("length", [2, 4])
def test_vectors_of_different_length_are_refused(length):
    mean = RunningMean()
    mean.add(np.zeros(3, np.float32), 1)
    with pytest.raises(ValueError, match=f"expected 3 values, got {length}"):
        mean.add(np.zeros(length, np.float32), 1)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_weight_must_be_positive_and_finite(weight):
    with pytest.raises(ValueError, match="weight must be positive and finite"):
        RunningMean().add(np.zeros(3, np.float32), weight)


def test_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="mean of no vectors"):
        RunningMean().result()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("index", [0, _BLOCK, LONG - 1])
def test_one_bad_value_anywhere_is_found(index, bad):
    vector = np.zeros(LONG, np.float32)
    assert is_finite(vector)
    vector[index] = bad
    assert not is_finite(vector)


def test_dice_by_hand():
    # 2*8/(16+2+6); nothing right; class absent from prediction and reference
    dice = dice_per_class([8, 0, 0], [2, 3, 0], [6, 0, 0])
    assert dice[:2] == [pytest.approx(2 / 3), 0.0]
    assert math.isnan(dice[2])
    assert mean_dice(dice) == pytest.approx(1 / 3)


def test_dice_of_no_class_is_unknown():
    assert math.isnan(mean_dice([]))
    assert math.isnan(mean_dice([math.nan, math.nan]))
    with pytest.raises(ValueError, match="zip"):
        dice_per_class([1, 2], [1], [1, 2])


def test_weighted_mean_by_hand():
    assert weighted_mean([(1.0, 1), (4.0, 3)]) == 3.25
    assert math.isnan(weighted_mean([]))
