"""What a site says when a federation asks it to take part."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunetv2_federated.federation.agreement import hash_plans
from nnunetv2_federated.federation.errors import CheckpointError, SiteError
from nnunetv2_federated.federation.messages import TrainTask
from nnunetv2_federated.federation.proposals import Proposal
from nnunetv2_federated.federation.run import read_run
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.server.credentials import provision
from nnunetv2_federated.flower.deployment.site.consent import NotApprovedError
from nnunetv2_federated.flower.deployment.site.guarded_site import GuardedSite
from nnunetv2_federated.flower.deployment.site.limits import Limits
from nnunetv2_federated.flower.deployment.site.local_site import LocalSite
from nnunetv2_federated.flower.deployment.site.preflight import check_site
from nnunetv2_federated.flower.deployment.site.site_file import SiteSettingsFile
from nnunetv2_federated.flower.deployment.site.trial import PreflightTarget
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.training.weights import to_vector


@pytest.fixture
def guarded(
    dataset_2d: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[GuardedSite]:
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    here = LocalSite("bern", dataset_2d, tmp_path / "work", "cpu", Limits(max_rounds=5))
    opened = GuardedSite(here)
    yield opened
    opened.pool.close()


def proposal(**changes: Any) -> Proposal:
    settings = FederationSettings(rounds=2, iterations_per_epoch=1, val_iterations=1, min_replies=2)
    content: dict[str, Any] = {
        "run_id": "first",
        "dataset": "Dataset777_OfTheServer",
        "configuration": "2d",
        "fold": 0,
        "trainer": "nnUNetTrainerFederated",
        "plans_name": "nnUNetPlans",
        "plans_hash": load_dataset("901").plans_hash,
        "site_index": 2,
        "settings": asdict(settings),
    }
    content |= changes
    own = {content["configuration"]: [content["fold"]]}
    return Proposal(**{"queue": own, **content})


def test_a_site_trains_its_own_dataset_once_it_was_approved(guarded: GuardedSite) -> None:
    asked = proposal()
    with pytest.raises(NotApprovedError, match=f"not approved federation {asked.approval()[:12]}"):
        guarded.membership.join(asked)
    with pytest.raises(SiteError, match="has not joined"):
        guarded.membership.site()
    assert guarded.consent.proposed() == asked

    guarded.consent.approve(asked.approval(), "test")
    guarded.membership.join(asked)
    site = guarded.membership.site()

    assert guarded.consent.proposed() is None
    assert site.run.dataset == "Dataset901_Balls"
    assert site.describe().site == "bern"
    assert site.run.settings.seed == FederationSettings.seed + 2  # as the third of the sites


def test_a_dataset_that_does_not_agree_with_itself_is_refused_without_naming_a_case(
    guarded: GuardedSite, nnunet_folders: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guarded.consent.approve(proposal().approval(), "test")
    label = nnunet_folders / "raw" / "Dataset901_Balls" / "labelsTr" / "case_05.png"
    before, stat = label.read_bytes(), label.stat()
    label.write_bytes(before + b"0")
    try:
        with pytest.raises(SiteError) as refusal:
            guarded.membership.join(proposal())
    finally:
        label.write_bytes(before)
        os.utime(label, (stat.st_atime, stat.st_mtime))

    assert str(refusal.value) == (
        "site bern: its dataset does not agree with itself; there, nnUNetv2_federated_check and "
        "the site's log say what"
    )
    assert "the segmentation of 1 case (case_05)" in caplog.text
    with pytest.raises(SiteError, match="has not joined"):
        guarded.membership.site()


def test_a_new_start_forgets_the_earlier_one_and_the_same_start_does_not(
    guarded: GuardedSite,
) -> None:
    guarded.consent.approve(proposal().approval(), "test")
    guarded.membership.join(proposal())
    folder = guarded.membership.site().folder.parents[1]
    (folder / "kept").touch()

    guarded.membership.join(proposal())
    assert (folder / "kept").exists()

    guarded.membership.join(proposal(run_id="second"))
    assert not (folder / "kept").exists()
    assert read_run(folder).run_id == "second"


def test_a_site_repeats_its_first_round_and_says_when_its_state_is_gone(
    guarded: GuardedSite,
) -> None:
    """The server was killed before the round ended, and asks for it again."""
    guarded.consent.approve(proposal().approval(), "test")
    guarded.membership.join(proposal())
    site = guarded.membership.site()
    weights, task = to_vector(site.trainer.network).copy(), TrainTask(0, 0.01, 1, 0)

    trained = [site.train(task, weights)[0].copy() for _ in range(2)]

    np.testing.assert_array_equal(*trained)
    assert not np.array_equal(trained[0], weights)
    for state in site.folder.glob("after_round_*"):
        state.unlink()
    with pytest.raises(CheckpointError, match="site bern lost its state"):
        site.train(TrainTask(1, 0.005, 1, 0), weights)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"plans_hash": "0" * 64}, "no dataset preprocessed for 2d"),
        ({"plans_name": "nnUNetResEncUNetMPlans"}, "no dataset preprocessed for 2d"),
        ({"plans_name": "dataset"}, "no dataset preprocessed for 2d"),  # a file that is no plans
        ({"configuration": "3d_fullres"}, "no dataset preprocessed for 3d_fullres"),
        ({"fold": 17}, "fold 17"),
        ({"trainer": "os.system"}, "trainer os.system is unknown"),
        ({"settings": {"rounds": 2, "code": "x"}}, "code is unknown"),
        ({"settings": {"rounds": -1}}, "rounds -1"),
        ({"settings": {"rounds": 6}}, "at most 5 rounds"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_without_a_path(
    guarded: GuardedSite, changes: dict[str, Any], text: str
) -> None:
    asked = proposal(**changes)
    guarded.consent.approve(asked.approval(), "test")
    with pytest.raises(SiteError, match=text) as error:
        guarded.membership.join(asked)
    assert str(error.value).startswith("site bern")
    assert "/" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"nonlin": "torch.nn.parallel.distributed.os.system"}, "is not an allowed nonlin"),
        ({"features_per_stage": 10_000}, "the network with patch .* would take about"),
    ],
)
def test_plans_that_name_a_command_or_do_not_fit_are_refused_though_approved(
    guarded: GuardedSite, arguments: dict[str, Any], text: str
) -> None:
    dataset = load_dataset("901")
    plans = json.loads(json.dumps(dataset.plans))
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"] |= arguments
    path = dataset.folder / "OtherPlans.json"
    path.write_text(json.dumps(plans))
    try:
        asked = proposal(plans_name="OtherPlans", plans_hash=hash_plans(plans))
        guarded.consent.approve(asked.approval(), "test")
        with pytest.raises(SiteError, match=f"site bern: refused plans: .*{text}"):
            guarded.membership.join(asked)
    finally:
        path.unlink()
    with pytest.raises(SiteError, match="has not joined"):
        guarded.membership.site()


@pytest.mark.usefixtures("guarded")
def test_the_check_names_what_is_missing(tmp_path: Path) -> None:
    provision(tmp_path, Address("127.0.0.1", 9), ["bern"])
    bundle = tmp_path / "sites" / "bern"
    settings = SiteSettingsFile(
        "bern",
        Address("127.0.0.1", 9),  # nobody listens at the port "discard"
        bundle / "ca.crt",
        bundle / "site.key",
        bundle / "coordinator.pub",
        tmp_path / "work",
    )

    def checks(dataset: str) -> dict[str, bool]:
        target = PreflightTarget(dataset, "nnUNetPlans", "2d", 0, "nnUNetTrainer", "cpu")
        return {check.name: check.ok for check in check_site(settings, target)}

    assert checks("901") == {
        "versions": True,
        "key": True,
        "server": False,
        "disk": True,
        "dataset": True,
        "fold": True,
        "preprocessed cases": True,
        "patients": True,
        "references": True,
        "dataset.json": True,
        "channels": True,
        "labels": True,
        "to compare": True,
        "plans": True,
        "shared memory": True,
        "one iteration on cpu": True,
    }
    assert checks("999")["dataset"] is False
    assert not list((tmp_path / "results").glob("**/fold_0"))  # nothing is left behind
