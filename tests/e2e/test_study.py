"""A study over a network: approved once, whoever is killed, the trials are those of one machine."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from consortium import SITES, Consortium
from killing import place
from study_database import STUDY, trials_of

import nnunetv2_federated as federated
from nnunetv2_federated.federation.files import read_state
from nnunetv2_federated.flower import client_app
from nnunetv2_federated.flower.server_app import Server
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.data.folds import fold_split
from nnunetv2_federated.nnunet.evaluation.scoring import score_here
from nnunetv2_federated.nnunet.training.trainer import FederatedRounds

pytestmark = pytest.mark.deployment


@pytest.mark.slow(120)
@pytest.mark.usefixtures("forked_trainings")
def test_a_study_is_approved_once_and_is_that_of_one_machine_whoever_is_killed(
    tmp_path: Path, dataset_2d: str, nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = nnunet_folders / "preprocessed" / load_dataset(dataset_2d).name
    fold_split(load_dataset(dataset_2d), "2d", 0)
    settings = tmp_path / "tune.toml"
    settings.write_text(STUDY)
    consortium = Consortium(tmp_path, dataset, SITES)
    consortium.plan_kills(
        "bern",
        {
            place(FederatedRounds.train_step): ("bern",),
            place(score_here, client_app): ("superlink",),
        },
    )
    consortium.plan_kills("server", {place(Server.score): ("oslo", "server")})

    def tune() -> None:
        consortium.start(
            "server",
            *("nnunetv2_federated.cli.tune", consortium.dataset, "2d", "0"),
            *("--settings", settings, "--study", tmp_path / "study"),
            *("--server", f"localhost:{consortium.port}"),
            *("--credentials", consortium.credentials / "server"),
        )

    restart = {
        "server": tune,
        # approved once: no site that comes back is asked again
        **{site: (lambda site=site: consortium.start_site(site)) for site in SITES},
    }
    try:
        tune()
        for site in SITES:
            consortium.start_site(site)
        for site in SITES:
            consortium.approve(site)
        assert consortium.see_through(restart) == 0, consortium.all_said()
    finally:
        consortium.stop()
    assert consortium.still_alive() == []

    chosen = tomllib.loads(STUDY)
    sites_file = tmp_path / "sites.json"
    sites_file.write_text(json.dumps(SITES))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    federated.tune(
        *(dataset_2d, "2d", 0, tmp_path / "here", chosen.pop("search")),
        sites_file=sites_file,
        **chosen,
    )
    assert trials_of(tmp_path / "study") == trials_of(tmp_path / "here")
    best = tomllib.loads((tmp_path / "study" / "best.toml").read_text())
    assert best["server"] == f"localhost:{consortium.port}"

    # what a site needs to continue a trial goes once that trial has ended for good
    for site in SITES:
        said = consortium.said(site)
        assert "asked to take part" in said
        assert said.count("asked to take part") == 1
        results = tmp_path / site / "results"
        trials = next((results / "studies").iterdir())
        assert sorted(path.name for path in trials.iterdir()) == [
            "trial_000",
            "trial_001",
            "trial_002",
        ]
        assert not list(trials.glob("*/*/*/fold_0/federation/sites"))
        assert "the study is finished; trials that have ended: 3" in said
        assert [path.name for path in results.iterdir()] == ["studies"]
        private = consortium.credentials / "sites" / site / "work"
        ledger = read_state(private / "ledger.json", 1, "")
        assert ledger is not None
        (account,) = (name for name in ledger["spent"] if name.startswith("study "))
        assert ledger["spent"][account]["hours"] > 0
