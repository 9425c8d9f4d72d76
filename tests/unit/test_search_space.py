"""What a tuning may vary, and with which values."""

from __future__ import annotations

from typing import Any

import pytest

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.search_space import OneOf, Range, SearchSpace
from nnunetv2_federated.federation.search_table import read_search_space
from nnunetv2_federated.federation.settings import FederationSettings

BASE = FederationSettings(
    rounds=60, strategy="fedprox", strategy_options={"proximal_mu": 0.3}, momentum=0.9
)


def read(table: dict[str, Any], base: FederationSettings = BASE) -> SearchSpace:
    return read_search_space(table, base)


def test_a_space_over_settings_and_options_of_strategies() -> None:
    space = read(
        {
            "initial_lr": {"low": 1e-3, "high": 0.1, "log": True},
            "local_epochs": {"low": 1, "high": 3},
            "strategy": ["fedavg", "fedprox", "krum"],
            "fedprox": {"proximal_mu": {"low": 0.001, "high": 1}},
            "krum.num_malicious_nodes": {"low": 1, "high": 2},
        }
    )
    by_name = {p.name: p.values for p in space.parameters}
    assert by_name["initial_lr"] == Range(1e-3, 0.1, log=True, whole=False)
    assert by_name["local_epochs"] == Range(1, 3, log=False, whole=True)
    assert by_name["fedprox.proximal_mu"] == Range(0.001, 1, log=False, whole=False)
    assert by_name["krum.num_malicious_nodes"] == Range(1, 2, log=False, whole=True)
    assert by_name["strategy"] == OneOf(("fedavg", "fedprox", "krum"))
    assert [p.name for p in space.of("fedavg")] == ["initial_lr", "local_epochs", "strategy"]
    assert space.of("krum")[-1].option == "num_malicious_nodes"
    assert by_name["initial_lr"].has(0.1)
    assert not by_name["initial_lr"].has(0.11)
    assert not by_name["strategy"].has("fedyogi")


def test_a_trial_has_its_own_values_and_the_options_of_its_own_strategy() -> None:
    space = read(
        {"strategy": ["fedavg", "fedprox", "fedavgm"], "fedavgm.server_momentum": [0.5, 0.9]}
    )
    averaged = space.apply(BASE, {"strategy": "fedavg"})
    assert (averaged.strategy, averaged.strategy_options) == ("fedavg", {})
    assert averaged.momentum == 0.9
    proximal = space.apply(BASE, {"strategy": "fedprox"})
    assert proximal.strategy_options == {"proximal_mu": 0.3}
    moved = space.apply(BASE, {"strategy": "fedavgm", "fedavgm.server_momentum": 0.5})
    assert moved.strategy_options == {"server_momentum": 0.5}
    # an option alone varies that of the strategy that all trials have
    alone = read({"fedprox.proximal_mu": [0.1, 1.0]})
    assert alone.apply(BASE, {"fedprox.proximal_mu": 1.0}).strategy_options == {"proximal_mu": 1.0}


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({}, "names no setting to vary"),
        ({"learning_rate": [1, 2]}, "learning_rate: is no setting; those that may vary are init"),
        ({"rounds": [10, 20]}, "rounds: may not vary: trials differ in the share"),
        ({"batch_size": [2, 4]}, "batch_size: may not vary: it changes the work"),
        ({"seed": [1, 2]}, "seed: may not vary: a lucky seed"),
        ({"dp_epsilon": [1.0, 2.0]}, "dp_epsilon: may not vary: .* what is promised"),
        ({"momentum": 0.5}, "momentum = 0.5: give a list of values, or"),
        ({"momentum": [0.5]}, "at least two values"),
        ({"momentum": [0.5, 0.5]}, "each once"),
        ({"momentum": {"low": 0.5, "high": 1.5}}, "momentum: 1.5: must be at least 0 and below 1"),
        ({"momentum": {"low": 0.9, "high": 0.5}}, "low must be below high"),
        ({"momentum": {"low": 0, "high": 0.5, "log": True}}, "low = 0.0 with log = true"),
        ({"momentum": {"low": 0.1, "high": 0.5, "log": 1}}, "log = 1: must be true or false"),
        ({"momentum": {"low": 0.1, "step": 0.5}}, "step is unknown"),
        ({"momentum": {"low": 0.1}}, "low or high is missing"),
        ({"local_epochs": {"low": 1, "high": 2.5}}, "2.5: must be a whole number of at least 1"),
        ({"strategy": ["fedavg", "sgd"]}, "strategy: sgd: must be one of fedavg"),
        ({"weighting": {"low": 1, "high": 2}}, "has words and no range; list some of cases"),
        (
            {"strategy": ["fedavg", "krum"], "fedprox.proximal_mu": [0.1, 1.0]},
            "no trial has strategy fedprox, only fedavg, krum",
        ),
        ({"fedprox": {"proximal_mu": ["a", "b"]}}, "fedprox.proximal_mu: a: must be a number"),
        ({"sgd.mu": [1, 2]}, "sgd.mu: is no setting"),
        ({"momentum": [0, 0.0, 0.9]}, "each once"),
        (
            {"fedprox.proximal_mu": [0.1, 1.0], "fedprox": {"proximal_mu": [0.2, 1.0]}},
            "fedprox.proximal_mu: stands there twice",
        ),
    ],
)
def test_a_space_that_is_none_is_refused(table: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem) as refused:
        read(table)
    assert str(refused.value).startswith("[search]")
    assert "\n" not in str(refused.value)


def test_a_range_of_whole_numbers_has_no_other() -> None:
    """The default proximal_mu of 0.01 is none of {low = 0, high = 1}: Optuna would refuse it."""
    whole = Range(0, 1, log=False, whole=True)
    assert [whole.has(value) for value in (0, 1.0, 0.01, 2, True, "1")] == [
        *(True, True, False, False, False, False)
    ]
    assert Range(0, 1, log=False, whole=False).has(0.01)
