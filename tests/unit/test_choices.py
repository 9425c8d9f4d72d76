"""What a user can choose: checked alike in flags and settings files, and said once."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_federated.cli import compare, partition, plan, provision, server, train
from nnunetv2_federated.cli.command import Command
from nnunetv2_federated.cli.flags import flag_names, help_of, spell
from nnunetv2_federated.cli.reference import reference
from nnunetv2_federated.experiment.choices import (
    ArmChoices,
    CompareChoices,
    PlanChoices,
    TrainChoices,
)
from nnunetv2_federated.federation.choice import ChoiceError, names_of
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.partition import PartitionSettings
from nnunetv2_federated.federation.settings import FederationSettings

TARGET = ("501", "2d", "0")


def settings_file(folder: Path, text: str) -> str:
    path = folder / "federation.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('backend = "Ray"', 'backend = "Ray": must be one of in-process, ray.'),
        ('force = "no"', 'force = "no": must be true or false.'),
        ('rounds = "3"', 'rounds = "3": must be a whole number of at least 1.'),
        ("rounds = true", "rounds = true: must be a whole number of at least 1."),
        ("rounds = 3.0", "rounds = 3.0: must be a whole number of at least 1."),
        ("seed = -1", "seed = -1: must be a whole number of at least 0."),
        ("trainer = 5", "trainer = 5: must be a text."),
        ("strategy = 1", "strategy = 1: must be one of fedavg, fedavgm, fedprox,"),
        ('partition = "random"', 'partition = "random": must be one of iid, stratified,'),
        ("initial_lr = nan", "initial_lr = nan: must be above 0 and at most 1"),
        ("round_deadline = 0", "round_deadline = 0: must be a number of seconds above 0."),
        ("sites_file = 3", "sites_file = 3: must be a path."),
        ('remote_sites = "bern"', 'remote_sites = "bern": must be a list of texts.'),
        ("remote_sites = [1]", "remote_sites = [1]: must be a list of texts."),
        ('device = "gpu"', 'device = "gpu": must be one of cuda, cpu, mps.'),
        ("global_validation = 0", "global_validation = 0: must be true or false."),
        ("strategy_options = 3", "strategy_options = 3: must be finite numbers by name."),
        ("target = 3", "target is unknown; known are alpha, answer_deadline, backend,"),
        ("dataset = 3", "dataset is unknown"),
        ('settings = "x.toml"', "settings is unknown"),
    ],
)
def test_a_value_of_a_file_is_refused_by_file_key_and_value(
    tmp_path: Path, line: str, words: str
) -> None:
    path = settings_file(tmp_path, line)
    with pytest.raises(SettingsError) as refusal:
        train.command().parse([*TARGET, "--settings", path])
    assert str(refusal.value).startswith(f"--settings {path}: {words}")
    assert "\n" not in str(refusal.value)


def test_a_flag_wins_over_the_file_and_is_refused_as_a_flag(tmp_path: Path) -> None:
    path = settings_file(tmp_path, 'rounds = "3"\nlocal_epochs = 2\n')
    argv = [*TARGET, "--settings", path, "--rounds"]
    choices = train.command().parse([*argv, "4"])
    assert (choices.rounds, choices.local_epochs) == (4, 2)
    assert choices.chosen >= {"rounds", "local_epochs"}
    assert "momentum" not in choices.chosen
    with pytest.raises(ChoiceError, match=r"^--rounds 0: must be a whole number of at least 1"):
        train.command().parse([*argv, "0"])


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    text = "\n".join(
        f'{key} = "sub/{key}"'
        for key in ("pretrained_weights", "case_table", "sites_file", "credentials")
    )
    path = settings_file(tmp_path, text + '\nsuperlink_database = "/elsewhere/federation"\n')
    choices = train.command().parse([*TARGET, "--settings", path, "--case-table", "here.csv"])
    assert choices.pretrained_weights == tmp_path / "sub" / "pretrained_weights"
    assert choices.sites_file == tmp_path / "sub" / "sites_file"
    assert choices.credentials == tmp_path / "sub" / "credentials"
    assert choices.superlink_database == Path("/elsewhere/federation")
    assert choices.case_table == Path("here.csv")

    path = settings_file(tmp_path, 'output = "out"\n[centralised]\npretrained_weights = "w.pth"\n')
    comparison = compare.command().parse([*TARGET, "--settings", path])
    assert comparison.output == tmp_path / "out"
    assert comparison.centralised.pretrained_weights == tmp_path / "w.pth"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[centralised]\nrounds = 0", "[centralised] rounds = 0: must be a whole number"),
        ("[centralised]\nalpha = 1.0", "[centralised] alpha is unknown; known are answer_deadline"),
        ("[local]\nseed = 1", "[local] seed is unknown"),
        ("[federated.a]\nalpha = 'x'", '[federated.a] alpha = "x": must be a finite number'),
        ("[federated]\na = 3", "[federated.a]: expected a table, but it is 3."),
        ("federated = 3", "federated must be tables, as [federated.NAME]."),
        ("local = 3", "[local]: expected a table, but it is 3."),
        ("arms = ['all']", 'arms = ["all"]: must be'),
        ("seeds = [1, -1]", "seeds = [1, -1]: must be whole numbers of at least 0."),
    ],
)
def test_a_table_of_a_comparison_is_checked_as_the_rest(
    tmp_path: Path, text: str, words: str
) -> None:
    path = settings_file(tmp_path, text)
    with pytest.raises(SettingsError) as refusal:
        compare.command().parse([*TARGET, "--settings", path])
    assert str(refusal.value).startswith(f"--settings {path}: {words}")


def test_the_arms_of_a_comparison_are_read(tmp_path: Path) -> None:
    text = '[local]\nrounds = 2\n[federated.iid]\npartition = "iid"\nmomentum = 0.5\n'
    path = settings_file(tmp_path, text)
    choices = compare.command().parse(["501", "2d", "0", "all", "--settings", path])
    assert choices.folds == (0, "all")
    assert choices.local == ArmChoices(rounds=2)
    assert choices.federated["iid"].given() == {"method": "iid", "momentum": 0.5}
    assert choices.centralised.given() == {}


def test_flags_of_each_kind_become_values() -> None:
    flags = ["--strategy-option", "proximal_mu=0.1", "--strategy-option", "n=2", "--c"]
    flags += ["--no-global-validation", "--max-update-norm", "5", "--partition", "iid"]
    choices = train.command().parse(["--site-datasets", "101", "102", "2d", "all", *flags])
    assert choices.given() == {
        "dataset": "101",
        "configuration": "2d",
        "fold": "all",
        "site_datasets": ("101", "102"),
        "strategy_options": {"proximal_mu": 0.1, "n": 2},
        "c": True,
        "global_validation": False,
        "max_update_norm": 5.0,
        "method": "iid",
    }
    planned = plan.command().parse(
        ["-d", "1", "2", "-overwrite_target_spacing", "3", "1", "0.5", "-np", "2"]
    )
    assert planned.overwrite_target_spacing == (3.0, 1.0, 0.5)
    assert (planned.datasets, planned.np) == (("1", "2"), (2,))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "-d is missing"),
        (["-d", "1", "-npfp", "0"], "-npfp 0: must be a whole number of at least 1."),
        (["-d", "1", "-np", "2", "0"], "-np 2 0: must be whole numbers of at least 1."),
        (
            ["-d", "1", "-gpu_memory_target", "0"],
            r"-gpu_memory_target 0\.0: must be above 0 \(GB\)",
        ),
        (
            ["-d", "1", "-overwrite_target_spacing", "1", "0", "1"],
            r"-overwrite_target_spacing 1\.0 0\.0 1\.0: must be above 0 \(mm\)",
        ),
    ],
)
def test_a_wrong_flag_of_planning_gets_one_line(flags: list[str], words: str) -> None:
    with pytest.raises(SettingsError, match=f"^{words}"):
        plan.command().parse(flags)


def test_the_server_takes_what_to_train_from_the_file(tmp_path: Path) -> None:
    text = 'dataset = 601\nconfiguration = "2d"\nfold = 0\nserver = "localhost"\n'
    choices = server.command().parse(["--settings", settings_file(tmp_path, text)])
    assert (choices.dataset, choices.configuration, choices.fold) == ("601", "2d", 0)
    with pytest.raises(SettingsError, match="--dataset is missing: give it here or in the"):
        server.command().parse([])
    path = settings_file(tmp_path, text + "sites = 2\n")
    with pytest.raises(SettingsError, match="sites is unknown"):
        server.command().parse(["--settings", path])


COMMANDS: dict[str, Command[Any]] = {
    "train": train.command(),
    "server": server.command(),
    "compare": compare.command(),
    "partition": partition.command(),
    "plan": plan.command(),
    "provision": provision.command(),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_can_be_printed(name: str) -> None:
    parser: argparse.ArgumentParser = COMMANDS[name].parser
    text = " ".join(parser.format_help().split())
    assert "(default: )" not in text
    assert "default: None" not in text


def test_help_prints_the_default_that_holds() -> None:
    assert help_of(TrainChoices, "rounds").endswith("(default: 120)")
    assert help_of(TrainChoices, "trainer").endswith("(default: nnUNetTrainerFederated)")
    assert help_of(CompareChoices, "trainer").endswith("(default: nnUNetTrainer)")
    assert help_of(TrainChoices, "initial_lr").endswith("(default: the trainer's, 0.01)")
    assert help_of(TrainChoices, "c") == "continue where an earlier run stopped"
    assert spell(TrainChoices, "global_validation") == "--no-global-validation"


def test_what_records_share_has_one_default() -> None:
    """The settings are those of the choices, and the defaults of planning those of nnU-Net."""
    from nnunetv2_federated.nnunet.planning.planner import PlanSettings  # noqa: PLC0415
    from nnunetv2_federated.nnunet.planning.raw_site import RawSite  # noqa: PLC0415
    from nnunetv2_federated.nnunet.training.site_pool import DEFAULT_RESIDENT  # noqa: PLC0415
    from nnunetv2_federated.nnunet.workers import usable_cores  # noqa: PLC0415

    choices = TrainChoices(dataset="501", configuration="2d", fold=0)
    assert choices.part(FederationSettings) == FederationSettings()
    assert choices.part(PartitionSettings) == PartitionSettings()
    planning = PlanChoices(datasets=("1",))
    assert PlanSettings(planner=planning.planner, preprocessor=planning.preprocessor_name) == (
        PlanSettings()
    )
    assert help_of(PlanChoices, "npfp").endswith("(default: 8, but at most one for each core)")
    assert RawSite.fingerprint_processes == min(8, usable_cores())
    assert help_of(TrainChoices, "resident_trainers").endswith(f"(default: {DEFAULT_RESIDENT})")


def test_a_changed_record_keeps_what_was_chosen() -> None:
    arm = ArmChoices(rounds=2).changed(seed=3)
    assert arm.given() == {"rounds": 2, "seed": 3}
    assert asdict(arm) == asdict(ArmChoices()) | {"rounds": 2, "seed": 3}
    with pytest.raises(SettingsError, match="colour is unknown; known are answer_deadline"):
        ArmChoices(colour=1)
    assert set(names_of(FederationSettings)) <= set(flag_names(TrainChoices))


def test_the_reference_page_is_what_the_records_say() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference.md"
    assert page.read_text(encoding="utf-8") == reference(), (
        "run python -m nnunetv2_federated.cli.reference docs/reference.md"
    )
