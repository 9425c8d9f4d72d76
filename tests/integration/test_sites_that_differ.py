"""Sites as they are: those that mean something else are refused, all others take part."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from skimage import io
from small_datasets import write_dataset

from nnunetv2_federated.cli.plan import main as plan
from nnunetv2_federated.cli.train import main
from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.proposals import Proposal
from nnunetv2_federated.federation.run import Run, SiteCases
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.flower.deployment.site.guarded_site import GuardedSite
from nnunetv2_federated.flower.deployment.site.local_site import LocalSite
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.data.site_cases import sites_from_datasets
from nnunetv2_federated.nnunet.training.cascade import check_stages
from nnunetv2_federated.nnunet.training.site_pool import SitePool
from nnunetv2_federated.nnunet.training.weights import to_vector

NAMES = ("Dataset911_Here", "Dataset912_There")
LABELS = {"background": 0, "one": 1, "two": 2}
REGIONS = {"background": 0, "whole": [1, 2], "inner": [2]}
STAGES = {
    "2d_first": {"inherits_from": "2d", "next_stage": "2d_second"},
    "2d_second": {"inherits_from": "2d", "previous_stage": "2d_first"},
}


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


@pytest.fixture
def two(dataset_2d: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two preprocessed sites of the same twelve cases, and an earlier run of theirs."""
    source = load_dataset(dataset_2d).folder
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    folders = [tmp_path / "preprocessed" / name for name in NAMES]
    for folder in folders:
        shutil.copytree(source, folder)
        edit(folder / "nnUNetPlans.json", dataset_name=folder.name)
    earlier = tmp_path / "results" / NAMES[0] / "nnUNetTrainerFederated__nnUNetPlans__2d"
    (earlier / "fold_all" / "federation").mkdir(parents=True)
    (earlier / "fold_all" / "checkpoint_final.pth").write_text("of an earlier run")
    (earlier / "fold_all" / "federation" / "state.pt").write_text("of an earlier run")
    return folders


def sorted_regions(there: Path) -> None:
    for folder in (there.with_name(NAMES[0]), there):
        labels = REGIONS if folder.name == NAMES[0] else dict(sorted(REGIONS.items()))
        edit(folder / "dataset.json", labels=labels, regions_class_order=[1, 2])


def painted_in_another_order(there: Path) -> None:
    for folder, order in ((there.with_name(NAMES[0]), [1, 2]), (there, [2, 1])):
        edit(folder / "dataset.json", labels=REGIONS, regions_class_order=order)


def empty_folder(there: Path) -> None:
    shutil.rmtree(there / "nnUNetPlans_2d")
    (there / "nnUNetPlans_2d").mkdir()


def second_name(there: Path) -> None:
    (there.parents[1] / "results" / "Dataset912_Once").mkdir()


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "regions in another order": (
        sorted_regions,
        "labels of Dataset912_There is {'background': 0, 'inner': [2], 'whole': [1, 2]}, of "
        "Dataset911_Here {'background': 0, 'whole': [1, 2], 'inner': [2]}; the order counts",
    ),
    "another order of painting": (painted_in_another_order, "regions_class_order of Dataset912"),
    "an older key": (
        lambda f: edit(f / "dataset.json", channel_names=None, modality={"0": "CT"}),
        "channel_names of Dataset912_There is {'0': 'CT'}, of Dataset911_Here {'0': 'image'}",
    ),
    "fewer labels": (
        lambda f: edit(f / "dataset.json", labels={"background": 0, "one": 1}),
        "labels of Dataset912_There is {'background': 0, 'one': 1}",
    ),
    "labels of v1": (
        lambda f: edit(f / "dataset.json", labels={"0": "background", "1": "one"}),
        "labels are the other way round, as in nnU-Net v1",
    ),
    "a stray file": (
        lambda f: (f / "nnUNetPlans_2d" / "desktop.ini").touch(),
        "Dataset912_There/nnUNetPlans_2d holds desktop.ini beside nnU-Net's own files",
    ),
    "an empty folder": (empty_folder, "2d of Dataset912_There is not preprocessed: run"),
    "two names": (second_name, "Dataset912_Once (in nnUNet_results)"),
}


@pytest.mark.parametrize(("spoil", "message"), REFUSED.values(), ids=REFUSED)
def test_a_site_that_differs_is_refused_and_an_earlier_run_is_as_it_was(
    spoil: Callable[[Path], object],
    message: str,
    two: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(two[1])
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    with pytest.raises(SystemExit) as exit_:
        main(["--site-datasets", "911", "912", "2d", "all", "-device", "cpu"])

    assert exit_.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert message in error
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_the_same_said_in_another_way_takes_part(two: list[Path]) -> None:
    edit(
        two[1] / "dataset.json",
        channel_names=None,
        modality={"0000": "image"},
        labels={"two": "2", "one": "1", "background": "0"},
        regions_class_order=[2, 1],  # of no account without regions
    )

    sites = sites_from_datasets(["911", "912"], "2d", "all", "nnUNetPlans")

    assert [len(site.training_cases) for site in sites] == [12, 12]


def keep_cases(folder: Path, cases: int) -> None:
    for path in (folder / "nnUNetPlans_2d").iterdir():
        if int(path.name[5:7]) >= cases:
            path.unlink()


def test_a_site_too_small_for_five_folds_trains_with_all_it_has(two: list[Path]) -> None:
    keep_cases(two[1], 1)
    for folder in two:
        (folder / "splits_final.json").unlink(missing_ok=True)

    here, there = sites_from_datasets(["911", "912"], "2d", 4, "nnUNetPlans")

    assert len(here.training_cases) + len(here.validation_cases) == 12
    assert (there.training_cases, there.validation_cases) == (("case_00",), ())
    assert not (two[1] / "splits_final.json").exists()
    with pytest.raises(SettingsError, match="no site has a validation case"):
        sites_from_datasets(["912"], "2d", 4, "nnUNetPlans")
    with pytest.raises(SettingsError, match="fold 5 does not exist"):
        sites_from_datasets(["911", "912"], "2d", 5, "nnUNetPlans")


def add_stages(folder: Path) -> None:
    path = folder / "nnUNetPlans.json"
    edit(path, configurations=json.loads(path.read_text())["configurations"] | STAGES)


def run_of(configuration: str, cases: int = 2) -> Run:
    names = tuple(f"case_{index:02d}" for index in range(cases))
    return Run(
        dataset=NAMES[0],
        configuration=configuration,
        fold="all",
        trainer="nnUNetTrainerFederated",
        plans_name="nnUNetPlans",
        device="cpu",
        settings=FederationSettings(rounds=1, iterations_per_epoch=1, val_iterations=1),
        sites=tuple(SiteCases(name, name, names, names) for name in NAMES),
    )


def test_a_stage_that_was_not_trained_is_refused(two: list[Path], tmp_path: Path) -> None:
    for folder in two:
        add_stages(folder)
    stage = "nnUNetTrainerFederated__nnUNetPlans__2d_first/predicted_next_stage/2d_second"
    for name, cases in zip(NAMES, (2, 1), strict=True):
        (tmp_path / "results" / name / stage).mkdir(parents=True)
        for index in range(cases):
            (tmp_path / "results" / name / stage / f"case_{index:02d}.b2nd").touch()

    check_stages(run_of("2d"))
    check_stages(run_of("2d_first"))
    check_stages(run_of("2d_second", cases=1))
    with pytest.raises(
        SettingsError,
        match=r"2d_second: 1 of 2 cases of Dataset912_There, such as case_01, have no prediction "
        r"of 2d_first in .*: train 2d_first first",
    ):
        check_stages(run_of("2d_second"))


def test_a_stage_whose_next_is_not_preprocessed_is_refused(two: list[Path]) -> None:
    for folder in two:
        add_stages(folder)
        path = folder / "nnUNetPlans.json"
        configurations = json.loads(path.read_text())["configurations"]
        configurations["2d_second"]["data_identifier"] = "nnUNetPlans_2d_second"
        edit(path, configurations=configurations)

    with pytest.raises(SettingsError, match="2d_second of Dataset911_Here is not preprocessed"):
        check_stages(run_of("2d_first"))


def test_a_hospital_serves_both_stages_of_a_cascade(
    two: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own full validation writes what its second stage starts from."""
    add_stages(two[1])
    keep_cases(two[1], 1)
    guarded = GuardedSite(LocalSite("bern", NAMES[1], tmp_path / "work", "cpu"))
    asked = Proposal(
        run_id="first",
        dataset=NAMES[0],
        configuration="2d_second",
        fold="all",
        queue={"2d_second": ["all"]},
        trainer="nnUNetTrainerFederated",
        plans_name="nnUNetPlans",
        plans_hash=load_dataset(NAMES[1]).plans_hash,
        site_index=0,
        settings=asdict(FederationSettings(rounds=1, iterations_per_epoch=1, val_iterations=1)),
    )
    guarded.consent.approve(asked.approval(), "test")
    with (
        caplog.at_level(logging.ERROR),
        pytest.raises(SiteError, match="site bern: 2d_second lacks files") as refused,
    ):
        guarded.membership.join(asked)
    assert "case_" not in str(refused.value)
    assert "1 of 1 cases of Dataset912_There, such as case_00" in caplog.text

    run = run_of("2d_first", cases=1)
    pool = SitePool()
    site = pool.get(run, 1, tmp_path / "first")
    site.validate_fully(to_vector(site.trainer.network))
    pool.close()

    guarded.membership.join(asked)
    guarded.membership.release()


def test_healthy_and_single_cases_take_part(
    nnunet_folders: Path, train: Callable[..., Path]
) -> None:
    """Planned with, trained with and validated, although there is nothing to find in them."""
    for number, cases in ((913, 3), (914, 1)):
        name = f"Dataset{number}_Ward"
        write_dataset(nnunet_folders / "raw", name, (24, 24), cases=cases, labels=LABELS)
    (mask,) = (nnunet_folders / "raw" / "Dataset914_Ward" / "labelsTr").iterdir()
    io.imsave(str(mask), io.imread(str(mask)) * 0, check_contrast=False)

    plan(["-d", "913", "914", "-c", "2d", "-np", "1", "-npfp", "1"])
    fold = train("--site-datasets", "913", "914", "2d", "all", "--rounds", "1")

    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 4
    history = json.loads((fold / "federation.json").read_text())
    assert history["sites"]["Dataset914_Ward"]["training_cases"] == 1
    assert (fold / "checkpoint_final.pth").is_file()
