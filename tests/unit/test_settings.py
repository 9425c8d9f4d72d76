from __future__ import annotations

import json
import math

import pytest

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.run import RUN_FILE, Run, SiteCases, read_run
from nnunetv2_federated.federation.settings import FederationSettings

SITES = (
    SiteCases("bern", "Dataset501_A", ("a1", "a2"), ("a3",)),
    SiteCases("oslo", "Dataset502_B", ("b1",), ()),
)


def make_run(sites=SITES, **settings):
    return Run(
        dataset="Dataset501_A",
        configuration="3d_fullres",
        fold=2,
        trainer="nnUNetTrainer",
        plans_name="nnUNetPlans",
        device="cpu",
        settings=FederationSettings(**settings),
        sites=sites,
    )


def test_defaults_are_those_the_documentation_promises():
    settings = FederationSettings()
    assert (settings.rounds, settings.local_epochs) == (120, 1)
    assert (settings.iterations_per_epoch, settings.val_iterations) == (None, None)
    assert (settings.initial_lr, settings.momentum, settings.weight_decay) == (None, None, None)
    assert (settings.strategy, settings.weighting) == ("fedavg", "cases")
    assert settings.local_momentum == "keep"
    assert (settings.max_update_norm, settings.oversized_update) == ("auto", "refuse")
    assert settings.seed == 12345


@pytest.mark.parametrize(
    "name",
    [
        "rounds",
        "local_epochs",
        "iterations_per_epoch",
        "val_iterations",
        "batch_size",
        "sites_per_round",
        "min_replies",
        "resident_trainers",
    ],
)
@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, True, "3"])
def test_counts_are_whole_numbers_from_one(name, value):
    flag = "--" + name.replace("_", "-")
    with pytest.raises(SettingsError, match=rf"^{flag} {value}: .*whole number of at least 1"):
        FederationSettings(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("seed", 0.5),
        *(("initial_lr", value) for value in (0, -0.01, 1.01, math.nan, math.inf)),
        *(("momentum", value) for value in (-0.1, 1, 1.5, math.nan)),
        *(("weight_decay", value) for value in (-1e-5, 1, math.nan)),
        *(("max_update_norm", value) for value in (0, -1, True, None, "x", math.nan, math.inf)),
        ("oversized_update", "drop"),
        ("local_momentum", "drop"),
        ("transport_dtype", "float64"),
        ("weighting", "size"),
        ("strategy", "FedAvg"),
        ("strategy", "bulyan"),
        ("initial_lr", "0.01"),
        ("initial_lr", True),
        ("rounds", None),
        ("seed", None),
        ("global_validation", "no"),
    ],
)
def test_bad_value_is_refused_by_the_name_of_its_flag(name, value):
    flag = "--" + name.replace("_", "-")
    with pytest.raises(SettingsError, match=f"^{flag} {value}: must be "):
        FederationSettings(**{name: value})


@pytest.mark.parametrize("options", [5, {"eta": "x"}, {"eta": math.nan}])
def test_strategy_options_are_finite_numbers(options):
    with pytest.raises(SettingsError, match=r"^--strategy-option .* finite numbers"):
        FederationSettings(strategy="fedadam", strategy_options=options)


def test_two_sites_need_two_names():
    with pytest.raises(SettingsError, match="two sites have the same name"):
        make_run(sites=(SITES[0], SITES[0]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 0),
        ("initial_lr", 1),
        ("momentum", 0),
        ("weight_decay", 0),
        ("rounds", 1),
        ("max_update_norm", 1e-9),
        ("max_update_norm", 5),
        ("max_update_norm", "none"),
    ],
)
def test_values_on_the_border_are_allowed(name, value):
    assert getattr(FederationSettings(**{name: value}), name) == value


def test_more_replies_than_sites_per_round_are_refused():
    assert FederationSettings(sites_per_round=2, min_replies=2).min_replies == 2
    with pytest.raises(SettingsError, match=r"^--min-replies 3: .*at most --sites-per-round \(2\)"):
        FederationSettings(sites_per_round=2, min_replies=3)


@pytest.mark.parametrize("name", ["sites_per_round", "min_replies"])
def test_more_sites_than_there_are_is_refused(name):
    flag = "--" + name.replace("_", "-")
    assert make_run(**{name: 2}).settings == FederationSettings(**{name: 2})
    with pytest.raises(SettingsError, match=rf"^{flag} 3: .*number of sites \(2\)"):
        make_run(**{name: 3})


def test_a_site_without_training_cases_is_refused_by_name():
    with pytest.raises(SettingsError, match="site lyon has no training case"):
        SiteCases("lyon", "Dataset501_A", (), ("a1",))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"initial_lr": 0.1 + 0.2, "momentum": 0.95, "weight_decay": 1e-5, "batch_size": 4},
        {"strategy": "krum", "strategy_options": {"num_malicious_nodes": 1}},
        {"sites_per_round": 1, "min_replies": 1, "global_validation": False},
    ],
)
def test_a_run_survives_its_file(tmp_path, settings):
    run = make_run(**settings)
    (tmp_path / RUN_FILE).write_text(run.to_json())
    assert read_run(tmp_path) == run


def test_site_names_survive_any_locale(tmp_path):
    run = make_run((SiteCases("zürich", "Dataset501_A", ("a1",), ()),))
    (tmp_path / RUN_FILE).write_text(run.to_json(), encoding="ascii")
    assert read_run(tmp_path).sites[0].name == "zürich"


@pytest.mark.parametrize("where", [(), ("settings",)])
def test_unknown_key_of_a_newer_version_is_refused(tmp_path, where):
    content = json.loads(make_run().to_json())
    target = content
    for key in where:
        target = target[key]
    target["colour"] = 1
    (tmp_path / RUN_FILE).write_text(json.dumps(content))
    with pytest.raises(SettingsError, match=r"run\.json is not a readable run: .*colour"):
        read_run(tmp_path)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"settings": {}, "sites": [{}]}'])
def test_unreadable_run_is_named(tmp_path, text):
    if text is not None:
        (tmp_path / RUN_FILE).write_text(text)
    with pytest.raises(SettingsError, match=r"run\.json is not a readable run"):
        read_run(tmp_path)


def test_a_damaged_value_is_refused_when_read(tmp_path):
    text = make_run().to_json().replace('"rounds": 120', '"rounds": 0')
    (tmp_path / RUN_FILE).write_text(text)
    with pytest.raises(SettingsError, match="--rounds 0"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (None, "older nnunetv2-federated"),
        (1, "older nnunetv2-federated"),
        (2, "older nnunetv2-federated"),
        (3, "older nnunetv2-federated"),
        (4, "older nnunetv2-federated"),
        (6, "upgrade"),
        ("x", "readable run"),
    ],
)
def test_a_run_of_another_format_is_refused(tmp_path, found, words):
    content = json.loads(make_run().to_json())
    content.pop("format")
    if found is not None:
        content["format"] = found
    (tmp_path / RUN_FILE).write_text(json.dumps(content))
    with pytest.raises(SettingsError, match=words):
        read_run(tmp_path)
