"""Privacy accounting: the design's tables, formulas by hand, and never less than the truth."""

from __future__ import annotations

import math
import sys

import pytest
from dp_accounting import (
    GaussianDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.mechanism import Mechanism, merge
from nnunetv2_federated.nnunet.privacy import accounting
from nnunetv2_federated.nnunet.privacy.accounting import (
    ACCOUNTANT,
    check_delta,
    default_delta,
    epsilon_of,
    noise_for,
)
from nnunetv2_federated.nnunet.privacy.calculator import by_steps, promise
from nnunetv2_federated.nnunet.privacy.loss_grid import choose_interval

NOISES = (0.7, 1, 2, 4, 8)
BY_NOISE = {
    (60, 12, 200): (27.42, 13.05, 4.00, 1.47, 0.57),
    (168, 24, 200): (20.24, 9.61, 3.05, 1.18, 0.49),
    (168, 24, 5000): (247.76, 104.95, 27.70, 9.51, 3.69),
    (5000, 250, 1000): (21.57, 9.72, 3.22, 1.36, 0.61),
    (62, 2, 30000): (111.06, 41.09, 10.55, 3.71, 1.46),
    (168, 12, 30000): (412.79, 157.84, 38.26, 12.68, 4.84),
}
"""Epsilon by patients, batch and steps, for each noise: dp-accounting's own PLDAccountant with an
interval of 2e-3, an upper bound that is loose for many steps."""

BOTH_RELATIONS = {
    (168, 16, 2.0, 1000): (5.06, 11.80),
    (62, 8, 4.0, 1000): (2.41, 6.09),
    (1000, 64, 1.5, 2000): (8.81, 19.06),
    (5000, 128, 1.0, 5000): (11.32, 20.89),
    (5000, 128, 1.0, 30000): (37.33, 77.56),
    (4708, 256, 1.0, 1000): (10.70, 18.89),
}
"""Epsilon for add/remove and replace-one by patients, batch, noise and steps: the same accountant
with an interval of 1e-4. Opacus' PRV accountant has 0.01 more of each first number."""


def delta_of_gaussian(epsilon: float, noise: float) -> float:
    """Balle and Wang 2018, theorem 8, for a sensitivity of 1."""
    half, rest = 1 / (2 * noise), epsilon * noise
    return float(norm.cdf(half - rest) - math.exp(epsilon) * norm.cdf(-half - rest))


def delta_of_one_sample(epsilon: float, probability: float, noise: float) -> float:
    """One step on a Poisson sample, exactly (Li, Qardaji and Su 2012, theorem 1)."""
    amplified = math.log1p(math.expm1(epsilon) / probability)
    return probability * delta_of_gaussian(amplified, noise)


@pytest.mark.parametrize("setting", BY_NOISE)
def test_epsilon_is_that_of_the_table(setting: tuple[int, int, int]) -> None:
    patients, batch, steps = setting
    for noise, expected in zip(NOISES, BY_NOISE[setting], strict=True):
        found = epsilon_of([Mechanism(batch / patients, noise, steps)], default_delta(patients))
        assert found <= expected + 0.025  # rounded, and on another grid
        assert found >= 0.975 * expected - 0.005


@pytest.mark.parametrize("setting", BOTH_RELATIONS)
def test_both_relations_are_those_of_the_table(setting: tuple[int, int, float, int]) -> None:
    patients, batch, noise, steps = setting
    used, delta = [Mechanism(batch / patients, noise, steps)], default_delta(patients)
    add_remove, replace_one = BOTH_RELATIONS[setting]
    assert epsilon_of(used, delta) == pytest.approx(add_remove, abs=0.006)
    found = epsilon_of(used, delta, relation="replace_one")
    assert found == pytest.approx(replace_one, rel=6e-4, abs=0.006)


@pytest.mark.parametrize("setting", BOTH_RELATIONS)
def test_it_is_below_what_renyi_accounting_allows(setting: tuple[int, int, float, int]) -> None:
    patients, batch, noise, steps = setting
    event = PoissonSampledDpEvent(batch / patients, GaussianDpEvent(noise))
    allowed = RdpAccountant().compose(SelfComposedDpEvent(event, steps))
    delta = default_delta(patients)
    found = epsilon_of([Mechanism(batch / patients, noise, steps)], delta)
    assert 0.8 * allowed.get_epsilon(delta) < found < allowed.get_epsilon(delta)


@pytest.mark.parametrize("noise", [0.5, 1, 3, 30])
@pytest.mark.parametrize("delta", [1e-2, 1e-5])
def test_one_step_on_all_patients_is_the_analytic_gaussian(noise: float, delta: float) -> None:
    epsilon = epsilon_of([Mechanism(1, noise, 1)], delta)
    expected = delta if epsilon else delta_of_gaussian(0, noise)
    assert delta_of_gaussian(epsilon, noise) == pytest.approx(expected, rel=1e-6)
    assert epsilon or expected <= delta
    replaced = epsilon_of([Mechanism(1, 2 * noise, 1)], delta, relation="replace_one")
    assert replaced == pytest.approx(epsilon, rel=1e-6)  # one who is another moves the sum twice


def test_steps_on_all_patients_are_one_step_with_less_noise() -> None:
    three = [Mechanism(1, 5.0, 9), Mechanism(1, 12.0, 16), Mechanism(1, 12.0, 9)]
    noise = 1 / math.sqrt(9 / 25 + 25 / 144)
    assert delta_of_gaussian(epsilon_of(three, 1e-4), noise) == pytest.approx(1e-4, rel=1e-6)


@given(
    st.floats(1e-4, 1).flatmap(lambda q: st.tuples(st.just(q), st.floats(1e-8, 0.9 * q))),
    st.floats(0.3, 30),
)
@settings(deadline=None, max_examples=10, derandomize=True)
def test_one_step_on_a_sample_is_never_below_the_truth(
    sample: tuple[float, float], noise: float
) -> None:
    probability, delta = sample
    epsilon = epsilon_of([Mechanism(probability, noise, 1)], delta)
    assert delta_of_one_sample(epsilon, probability, noise) <= delta * (1 + 1e-7)
    if epsilon > 0.01:
        assert delta_of_one_sample(epsilon * 0.998, probability, noise) > delta


@pytest.mark.parametrize("relation", ["add_remove", "replace_one"])
@pytest.mark.parametrize("steps", [10, 1000, 30_000, 250_000])
def test_many_steps_on_nearly_all_are_never_below_the_truth(
    steps: int, relation: accounting.Relation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly all: the grid is used, and the formula holds within its error."""
    monkeypatch.setattr(accounting, "_without_sampling", lambda *_: 1e9)
    noise = 2.0 * (2 if relation == "replace_one" else 1)
    used = [Mechanism(1 - 1e-8, noise * math.sqrt(steps), steps)]
    for delta in (1e-3, 1e-8):
        epsilon = epsilon_of(used, delta, relation=relation)
        assert 0.96 * delta < delta_of_gaussian(epsilon, 2.0) <= delta


def test_what_fourier_transforms_round_is_kept_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen best where delta is so small that rounding errors are a visible part of it."""
    monkeypatch.setattr(accounting, "_without_sampling", lambda *_: 1e9)
    monkeypatch.setattr(accounting, "SMALLEST_DELTA", 1e-11)
    used = [Mechanism(1 - 1e-8, 2.22 * math.sqrt(1858), 1858)]
    assert delta_of_gaussian(epsilon_of(used, 1e-11), 2.22) <= 1e-11
    monkeypatch.setattr(accounting, "_ROUNDING", 0.0)
    assert delta_of_gaussian(epsilon_of(used, 1e-11), 2.22) > 1e-11


def test_different_mechanisms_compose_in_any_order() -> None:
    first, second = Mechanism(0.1, 1.5, 100), Mechanism(0.3, 3.0, 50)
    both = epsilon_of([first, second], 1e-4)
    assert both == epsilon_of([second, first], 1e-4)
    alone = [epsilon_of([one], 1e-4) for one in (first, second)]
    assert max(alone) < both < epsilon_of([first], 5e-5) + epsilon_of([second], 5e-5)
    parts = [Mechanism(0.1, 1.5, 60), second, Mechanism(0.1, 1.5, 40)]
    assert both == epsilon_of(parts, 1e-4)


@pytest.mark.parametrize(
    "mechanisms",
    [[], [Mechanism(0.1, 0.0, 0)], [Mechanism(0.0, 0.0, 10)], [Mechanism(1, 1e9, 10)]],
    ids=["no rows", "no steps", "nobody drawn", "all noise"],
)
def test_what_tells_nothing_costs_nothing(mechanisms: list[Mechanism]) -> None:
    assert epsilon_of(mechanisms, 1e-5) == 0


@pytest.mark.parametrize("noise", [0.0, 1e-300, 1e-7])
def test_without_noise_there_is_no_bound(noise: float) -> None:
    assert epsilon_of([Mechanism(0.01, noise, 1), Mechanism(0.1, 9.0, 5)], 1e-5) == math.inf


@pytest.mark.parametrize("probability", [1e-300, 1e-6, 0.03, 1 - 1e-8, 1 - 1e-16, 1.0])
@pytest.mark.parametrize("noise", [1e-4, 0.05, 0.3, 1e6])
def test_extremes_have_a_bound_below_that_without_sampling(
    probability: float, noise: float
) -> None:
    bounds = [
        epsilon_of([Mechanism(p, noise, 300)], 1e-5, relation=relation)
        for relation in ("add_remove", "replace_one")
        for p in (probability, 1.0)
    ]
    sampled, all_used, replaced, all_replaced = bounds
    assert 0 <= sampled <= all_used * (1 + 1e-9) < math.inf
    assert sampled <= replaced <= all_replaced * (1 + 1e-9)


def test_the_grid_is_as_fine_as_its_cells_allow() -> None:
    few = choose_interval([Mechanism(0.1, 1.0, 200)], 1)
    many = choose_interval([Mechanism(0.1, 1.0, 200_000)], 1)
    assert few <= 4e-4
    assert many > few
    assert math.log2(many / few) % 1 == 0
    # 16 standard deviations of about sqrt(200,000 * 0.1**2 * (e - 1)) = 58.6 in 200,000 cells
    assert 58.6 * 16 / 200_000 <= many <= 2 * 60 * 17 / 200_000


@pytest.mark.parametrize(
    ("epsilon", "patients", "batch", "steps", "expected"),
    [
        (1, 60, 15, 200, 6.59),
        (8, 60, 15, 200, 1.56),
        (8, 60, 15, 1000, 3.3),
        (8, 60, 60, 200, 5.7),
        (0.1, 5000, 12, 30_000, None),
        (500, 168, 12, 30_000, None),
        (8, 2, 1, 1, None),
    ],
)
def test_the_noise_for_an_epsilon_is_the_smallest(
    epsilon: float, patients: int, batch: int, steps: int, expected: float | None
) -> None:
    delta, probability = default_delta(patients), batch / patients
    noise = noise_for(epsilon, delta, probability, steps)
    assert epsilon_of([Mechanism(probability, noise, steps)], delta) <= epsilon
    assert epsilon_of([Mechanism(probability, 0.99 * noise, steps)], delta) > epsilon
    assert float(f"{noise:.4g}") == noise  # what is printed is what is used
    if expected is not None:
        assert noise == pytest.approx(expected, rel=0.01)


def test_no_steps_need_no_noise() -> None:
    assert noise_for(1.0, 1e-5, 0.5, 0) == noise_for(1.0, 1e-5, 0.0, 9) == 0


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf, 501.0])
def test_an_epsilon_that_is_no_budget_is_refused(epsilon: float) -> None:
    with pytest.raises(SettingsError, match=r"epsilon .*: must be above 0 and at most 500"):
        noise_for(epsilon, 1e-5, 0.1, 10)


@pytest.mark.parametrize("delta", [0.0, -0.1, 1e-9, 1.0, 2.0, math.nan])
def test_a_delta_that_means_nothing_is_refused(delta: float) -> None:
    with pytest.raises(SettingsError, match=r"delta .*: must be at least 1e-08"):
        epsilon_of([], delta)
    with pytest.raises(SettingsError, match="delta"):
        noise_for(1.0, delta, 0.1, 10)


def test_delta_is_below_one_in_the_number_of_patients() -> None:
    assert default_delta(168) == pytest.approx(0.003566, rel=1e-3)  # exp(-1.1 * ln 168)
    assert default_delta(2) < 0.5
    check_delta(0.0059, 168)
    with pytest.raises(SettingsError, match=r"delta 0.00595238: must be below 1 / 168 patients"):
        check_delta(1 / 168, 168)
    with pytest.raises(SettingsError, match=r"1 patients: .* needs at least 2"):
        default_delta(1)


@pytest.mark.parametrize(
    ("probability", "noise", "steps", "what"),
    [
        (-0.1, 1.0, 1, "probability -0.1: must be from 0 to 1"),
        (1.1, 1.0, 1, "probability 1.1"),
        (math.nan, 1.0, 1, "probability nan"),
        (0.1, -1.0, 1, "noise multiplier -1.0: must be at least 0"),
        (0.1, math.nan, 1, "noise multiplier nan"),
        (0.1, math.inf, 1, "noise multiplier inf"),
        (0.1, 1.0, -1, "steps -1: must be at least 0"),
    ],
)
def test_numbers_that_no_step_has_are_refused(
    probability: float, noise: float, steps: int, what: str
) -> None:
    with pytest.raises(SettingsError, match=what):
        Mechanism(probability, noise, steps)


def test_equal_steps_are_added() -> None:
    used = [Mechanism(0.2, 1.0, 3), Mechanism(0.1, 2.0, 5), Mechanism(0.2, 1.0, 4)]
    expected = (Mechanism(0.1, 2.0, 5), Mechanism(0.2, 1.0, 7))
    assert merge([*used, Mechanism(0.0, 1.0, 9), Mechanism(0.5, 1.0, 0)]) == expected


def test_without_the_library_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(SettingsError, match=r'pip install "nnunetv2-federated\[dp\]"'):
        epsilon_of([Mechanism(0.1, 1.0, 1)], 1e-5)
    with pytest.raises(SettingsError, match="needs dp-accounting"):
        noise_for(1.0, 1e-5, 0.1, 10)


def test_the_accountant_is_named_with_its_version() -> None:
    assert ACCOUNTANT.startswith("privacy loss distributions of dp-accounting 0.6.")


def test_a_promise_is_found_from_an_epsilon_or_from_a_noise() -> None:
    found = promise(60, 15, 200, epsilon=3.0)
    assert found.mechanism.noise_multiplier == pytest.approx(2.98, rel=0.01)
    assert 2.9 < found.epsilon <= 3.0 < found.epsilon_replace_one
    again = promise(60, 15, 200, noise=found.mechanism.noise_multiplier)
    assert again == found
    # 2.98 times the root of 740, divided by 15
    assert found.noise_norm(740) == pytest.approx(5.40, rel=0.01)
    half, whole = by_steps(found, [100, 200])
    assert half.epsilon < whole.epsilon == found.epsilon
    for both in ({}, {"epsilon": 1.0, "noise": 1.0}):
        with pytest.raises(SettingsError, match="either an epsilon"):
            promise(60, 15, 200, **both)
