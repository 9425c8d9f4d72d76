"""One clear line, exit status 2, before any training, and nothing half-written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nnunetv2_federated.cli.partition import main as partition_main
from nnunetv2_federated.cli.train import main
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.data.folds import fold_split

BAD = {
    "unknown dataset": (["999", "2d", "0"], "dataset 999 is unknown"),
    "no dataset": (["2d", "0"], "expected DATASET CONFIGURATION FOLD"),
    "unknown configuration": (["901", "3d_fullres", "0"], "configuration 3d_fullres"),
    "unknown trainer": (["901", "2d", "0", "-tr", "nnUNetTrainerNone"], "nnUNetTrainerNone"),
    "unknown plans": (["901", "2d", "0", "-p", "nnUNetResEncL"], "plans nnUNetResEncL"),
    "unknown option": (
        ["901", "2d", "0", "--strategy-option", "nu=1"],
        "--strategy-option nu: fedavg has no options",
    ),
    "option without value": (["901", "2d", "0", "--strategy-option", "nu"], "write key=number"),
    "plans elsewhere": (
        ["901", "2d", "0", "-p", "../nnUNetPlans"],
        "plans '../nnUNetPlans' is not",
    ),
    "dataset elsewhere": (["../Dataset901_Balls", "2d", "0"], "dataset ../Dataset901_Balls is"),
    "trainer elsewhere": (["901", "2d", "0", "-tr", "a/b"], "trainer a/b is unknown"),
    "configuration elsewhere": (["901", "../2d", "0"], "configuration ../2d is unknown"),
    "fold out of range": (["901", "2d", "5"], "fold 5 does not exist"),
    "fold no number": (["901", "2d", "first"], "fold 'first': give a number"),
    "more sites than cases": (["901", "2d", "0", "--sites", "13"], "13"),
    "rounds": (["901", "2d", "0", "--rounds", "0"], "--rounds 0"),
    "lr": (["901", "2d", "0", "--initial-lr", "-1"], "--initial-lr -1.0"),
    "alpha": (
        ["901", "2d", "0", "--alpha", "0"],
        "--alpha 0.0: must be a finite number of at",
    ),
    "sites a round": (["901", "2d", "0", "--sites-per-round", "4"], "--sites-per-round 4"),
    "replies": (["901", "2d", "0", "--min-replies", "4"], "--min-replies 4"),
    "answers": (["901", "2d", "0", "--answer-deadline", "0"], "--answer-deadline 0"),
    "c without run": (["901", "2d", "0", "--c"], "--c: no earlier run"),
    "val without run": (["901", "2d", "0", "--val"], "checkpoint_final.pth does not exist"),
    "c and val": (["901", "2d", "0", "--c", "--val"], "not both"),
    "column without table": (["901", "2d", "0", "--partition", "column"], "--case-table"),
    "two sources": (["901", "2d", "0", "--sites", "2", "--site-datasets", "901"], "keep one"),
    "datasets twice": (["901", "2d", "0", "--site-datasets", "901", "901"], "named twice"),
    "datasets that differ": (["901", "2d", "0", "--site-datasets", "901", "902"], "901"),
    "no settings file": (["901", "2d", "0", "--settings", "none.toml"], "cannot be read"),
    "update norm": (["901", "2d", "0", "--max-update-norm", "much"], "--max-update-norm much"),
    "trims nothing": (
        ["901", "2d", "0", "--strategy", "fedtrimmedavg"],
        "a round may have no more than 3 replies, and beta=0.2 trims none of them",
    ),
    "krum of few": (
        ["901", "2d", "0", "--strategy", "krum", "--strategy-option", "num_malicious_nodes=1"],
        "num_malicious_nodes=1 needs 5",
    ),
    "median of few": (
        ["901", "2d", "0", "--sites-per-round", "2", "--strategy", "fedmedian"],
        "their median is their mean",
    ),
    "no pretrained": (["901", "2d", "0", "-pretrained_weights", "none.pth"], "none.pth"),
}


@pytest.mark.usefixtures("dataset_2d", "dataset_3d")
@pytest.mark.parametrize(("argv", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(
    argv: list[str],
    message: str,
    results: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([*argv, "-device", "cpu"])
    error = capsys.readouterr().err.strip()
    assert exit_.value.code == 2
    assert message in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert not results.exists()


def sites_file(tmp_path: Path, sites: dict[str, list[str]]) -> str:
    path = tmp_path / "sites.json"
    path.write_text(json.dumps(sites))
    return str(path)


@pytest.mark.usefixtures("dataset_2d")
@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ({"a": ["case_00"], "b": ["case_00", "case_01"]}, "case_00"),
        ({"a": ["case_00"], "b": ["case_99"]}, "case_99"),
        ({"a": ["case_00"], "b": []}, "b"),
    ],
    ids=["overlap", "unknown", "empty"],
)
def test_a_bad_sites_file_is_refused(
    sites: dict[str, list[str]],
    message: str,
    results: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["901", "2d", "0", "--sites-file", sites_file(tmp_path, sites)])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
    assert not results.exists()


def test_too_few_cases_for_five_folds_are_refused(dataset_2d: str, tmp_path: Path) -> None:
    dataset = load_dataset(dataset_2d)
    cases = [f"case_{index:02d}" for index in range(4)]
    images = dataset.folder / "nnUNetPlans_2d"
    (tmp_path / images.name).mkdir()
    for file in images.iterdir():
        if file.name[:7] in cases:
            shutil.copyfile(file, tmp_path / images.name / file.name)
    few = replace(dataset, folder=tmp_path)

    with pytest.raises(SettingsError, match="has 4 cases, nnU-Net's five folds need five"):
        fold_split(few, "2d", 0)
    assert fold_split(few, "2d", "all") == (cases, cases)


def test_unwritable_results_are_refused(
    dataset_2d: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results.write_text("a file where the folder should be")
    with pytest.raises(SystemExit) as exit_:
        main([dataset_2d, "2d", "0", "--rounds", "1", "-device", "cpu"])
    assert exit_.value.code == 2
    assert "nnUNet_results" in capsys.readouterr().err


def test_an_unknown_key_in_the_settings_file_is_named(
    dataset_2d: str, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "federation.toml"
    settings.write_text("round = 3\n")
    with pytest.raises(SystemExit):
        main([dataset_2d, "2d", "0", "--settings", str(settings)])
    assert "round is unknown" in capsys.readouterr().err
    del results


def test_partition_saves_a_table_and_a_picture(
    dataset_2d: str, nnunet_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = nnunet_folders / "preprocessed" / "Dataset901_Balls"
    partition_main([dataset_2d, "--sites", "2", "--partition", "iid"])
    saved = folder / "federated_sites.json"
    sites = json.loads(saved.read_text())
    saved.unlink()
    assert sorted(case for cases in sites.values() for case in cases) == [
        f"case_{i:02d}" for i in range(12)
    ]
    assert (folder / "federated_sites.png").stat().st_size > 1000
    assert "site_02" in capsys.readouterr().out
