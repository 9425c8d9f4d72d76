"""A federation with differential privacy, from the flags to what is told, counted and refused."""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Train, a_run, find_different, load_history, load_weights

import nnunetv2_federated as federated
from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.history import read_history
from nnunetv2_federated.federation.messages import PrivacyTerms, TrainTask
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.privacy_ledger import PrivacyLedger
from nnunetv2_federated.federation.privacy_rows import Row
from nnunetv2_federated.federation.proposals import Proposal
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.federation.study import StudyTerms
from nnunetv2_federated.flower.deployment.site.consent import Record, record_nothing
from nnunetv2_federated.flower.deployment.site.guarded_site import GuardedSite
from nnunetv2_federated.flower.deployment.site.limits import Limits
from nnunetv2_federated.flower.deployment.site.local_site import LocalSite
from nnunetv2_federated.flower.launch import check, prepare
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.privacy.site_privacy import LEDGER, Budget, SitePrivacy
from nnunetv2_federated.nnunet.training.global_model import GlobalModel
from nnunetv2_federated.nnunet.training.site import Site
from nnunetv2_federated.nnunet.training.weights import to_vector

SHORT: dict[str, Any] = {
    "sites": 1,
    "rounds": 3,
    "iterations_per_epoch": 2,
    "val_iterations": 1,
    "dp_noise": 2.0,
    "dp_batch": 3,
}


@pytest.fixture
def dataset(dataset_2d: str) -> Iterator[str]:
    """The dataset without what other tests have spent, and without what this one spends."""
    folder = (load_dataset(dataset_2d).folder / LEDGER).parent
    shutil.rmtree(folder, ignore_errors=True)
    yield dataset_2d
    shutil.rmtree(folder, ignore_errors=True)


def rows_of(dataset: str) -> tuple[Row, ...]:
    found = load_dataset(dataset)
    return PrivacyLedger(found.folder / LEDGER, found.name).rows()


def private_flags(*more: object) -> tuple[object, ...]:
    return ("2d", 0, "--sites", 2, "--rounds", 2, "--dp-noise", 1.5, "--dp-batch", 3, *more)


@pytest.mark.slow(30)
@pytest.mark.usefixtures("forked_trainings", "results")
def test_every_trial_of_a_tuning_is_charged_once_however_it_was_paused(
    dataset: str, tmp_path: Path
) -> None:
    """Two trials of two rounds of two iterations, one of them paused after its first round."""
    result = federated.tune(
        *(dataset, "2d", 0, tmp_path / "study", {"initial_lr": [0.001, 0.01]}),
        **(SHORT | {"rounds": 2, "dp_validation": "clear", "device": "cpu"}),
        trials=2,
        reduction=2,
        rungs=2,
        score_iterations=2,
    )
    assert result.settings is not None
    assert result.settings.dp_noise == 2.0
    # the default goes on to its end, and so does the best of the two, which may be it
    ended = len(list((tmp_path / "study").rglob("score_00002.json")))
    rounds = 2 + ended
    rows = rows_of(dataset)
    assert [row.mechanism.steps for row in rows] == [2] * rounds
    assert sorted(row.round for row in rows) == sorted([0, 0, *[1] * ended])


def test_what_is_told_and_counted_of_a_private_training(dataset: str, train: Train) -> None:
    fold = train(dataset, *private_flags())

    promises = [site.privacy for site in read_history(fold).sites.values()]
    assert all(isinstance(promise, PrivacyTerms) for promise in promises)
    history = load_history(fold)
    assert [record["train_loss"] for record in history["rounds"]] == [None, None]
    for record in history["rounds"]:
        assert (record["loss"], record["dice"], record["global_model"]) == (None, None, None)
        assert all(site["seconds"] % 10 == 0 for site in record["sites"].values())
    for site in history["sites"].values():
        terms = site["privacy"]
        assert terms["unit"] == "case"
        assert terms["patients"] == site["training_cases"]
        assert terms["probability"] == min(1.0, 3 / site["training_cases"])
        assert (terms["noise_multiplier"], terms["clip"], terms["iterations"]) == (1.5, 1.0, 4)
        assert 0 < terms["epsilon"] == terms["epsilon_spent"] < terms["epsilon_replace_one"]
        assert terms["max_epsilon"] is None
        assert "dp-accounting" in terms["accountant"]
    assert (fold / "checkpoint_final.pth").is_file()
    assert not (fold / "checkpoint_best.pth").exists()  # validation cases would have chosen it
    rows = rows_of(dataset)
    assert [(row.arm, row.round, row.mechanism.steps) for row in rows] == [
        ("site_01", 0, 2),
        ("site_02", 0, 2),
        ("site_01", 1, 2),
        ("site_02", 1, 2),
    ]
    assert not rows[0].patients & rows[1].patients
    log = torch.load(fold / "checkpoint_final.pth", weights_only=False)["logging"]
    assert all(math.isnan(loss) for loss in log["train_losses"] + log["val_losses"])


def test_another_training_with_the_same_patients_adds_to_what_is_spent(
    dataset: str, train: Train
) -> None:
    fold = train(dataset, *private_flags())
    first, weights = load_history(fold)["sites"], load_weights(fold)
    second = load_history(train(dataset, *private_flags()))["sites"]  # with the same seed
    for name, site in second.items():
        assert site["privacy"]["epsilon"] == first[name]["privacy"]["epsilon"]
        assert site["privacy"]["epsilon_spent"] > first[name]["privacy"]["epsilon_spent"]
    assert find_different(weights, load_weights(fold))  # its noise is another


def a_site(dataset: str, **chosen: Any) -> tuple[Site, TrainTask, Any]:
    """Return a private site, the task of its first round, and the weights to begin with."""
    run = a_run(dataset, **{**SHORT, **chosen})
    folder = prepare(run)
    model = GlobalModel(run)
    return Site(run, 0, folder, Observer()), TrainTask(0, 0.01, 1, 0), model.vector


def test_a_site_that_is_killed_in_a_round_has_paid_for_it(dataset: str, results: Path) -> None:
    del results
    site, task, weights = a_site(dataset)

    def train_and_die() -> None:
        site.trainer.on_iteration = lambda: os.kill(os.getpid(), signal.SIGKILL)
        site.train(task, weights)

    child = multiprocessing.get_context("fork").Process(target=train_and_die)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert [row.mechanism.steps for row in rows_of(dataset)] == [2]

    once, _ = site.train(task, weights)
    again, report = site.train(task, weights)  # a server that lost the answer, and its copy

    assert report.private
    assert not (once == again).all()  # the noise is not that of before
    assert [row.round for row in rows_of(dataset)] == [0, 0, 0]


def test_frozen_parameters_stay_as_they_came(
    dataset: str, results: Path, tmp_path: Path, train: Train
) -> None:
    pretrained = train(dataset, "2d", 0, "--sites", 1, "--rounds", 1) / "checkpoint_final.pth"
    shutil.copy(pretrained, tmp_path / "public.pth")
    before = load_weights(pretrained.parent)
    flags = ("-pretrained_weights", tmp_path / "public.pth", "--dp-trainable", "norm,head")
    fold = train(dataset, *private_flags(*flags))

    changed = find_different(before, load_weights(fold))

    assert changed
    of_norms = ("norm", "all_modules.1", "seg_layers")  # nnU-Net names a block's norm twice
    assert all(any(part in name for part in of_norms) for name in changed)
    assert any("seg_layers" in name for name in changed)
    del results


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "delta": ({"dp_delta": 0.2}, r"site_01: delta 0.2: must be below 1 / 9 patients"),
    "little noise": ({"dp_noise": 1e-4}, "--dp-noise 0.0001: so little noise protects nobody"),
    "endless": ({"iterations_per_epoch": 10**12}, "3000000000000 private iterations"),
    "frozen": ({"dp_trainable": "norm"}, "--dp-trainable norm: .* give -pretrained_weights"),
    "no trainer": ({"trainer": "nnUNetTrainerNone"}, "nnUNetTrainerNone"),
    "pattern": (
        {"dp_trainable": "xyz", "pretrained_weights": Path(__file__)},
        "--dp-trainable xyz fits no parameter",
    ),
}


@pytest.mark.parametrize(("chosen", "line"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_promised_is_refused_before_anything_is_written(
    chosen: dict[str, Any], line: str, dataset: str, results: Path
) -> None:
    with pytest.raises(SettingsError, match=line):
        check(a_run(dataset, **{**SHORT, **chosen}))
    assert not results.exists()
    assert rows_of(dataset) == ()


def test_a_site_with_one_patient_cannot_hide_it(dataset: str, results: Path) -> None:
    folder = load_dataset(dataset).folder
    table = folder / "cases.csv"
    table.write_text("case,patient\n" + "".join(f"case_{i:02d},p1\n" for i in range(12)))
    try:
        with pytest.raises(SettingsError, match=r"site site_01: 1 patients: .* needs at least 2"):
            check(a_run(dataset, **SHORT))
    finally:
        table.unlink()
    assert not results.exists()


def guarded(
    dataset: str, folder: Path, max_epsilon: float | None, record: Record = record_nothing
) -> GuardedSite:
    here = LocalSite("bern", dataset, folder / "work", "cpu", Limits(max_epsilon=max_epsilon))
    return GuardedSite(here, record=record)


def proposal(run_id: str, terms: StudyTerms | None = None, **settings: Any) -> Proposal:
    """A training; with terms the trial of a study whose number ``run_id`` is."""
    short = {"rounds": 2, "iterations_per_epoch": 1, "val_iterations": 1, "dp_batch": 3}
    return Proposal(
        run_id=run_id if terms is None else terms.run_id(int(run_id)),
        study=terms,
        trial=None if terms is None else int(run_id),
        dataset="Dataset777_OfTheServer",
        configuration="2d",
        fold=0,
        queue={"2d": [0]},
        trainer="nnUNetTrainerFederated",
        plans_name="nnUNetPlans",
        plans_hash=load_dataset("901").plans_hash,
        site_index=0,
        settings=asdict(FederationSettings(**{**short, **settings})),
    )


def test_a_hospital_s_budget_ends_what_would_pass_it(
    dataset: str, results: Path, tmp_path: Path
) -> None:
    del results
    run = a_run(dataset, **{**SHORT, "rounds": 2, "iterations_per_epoch": 1})
    promise = SitePrivacy(run, run.sites[0], load_dataset(dataset), 1, Budget())
    budget = promise.terms(0).epsilon * 1.1  # enough for one training, not for two
    recorded: list[tuple[str, dict[str, Any]]] = []
    site = guarded(dataset, tmp_path, budget, lambda event, **what: recorded.append((event, what)))
    try:
        for run_id in ("first", "second"):
            asked = proposal(run_id, dp_noise=2.0)
            site.consent.approve(asked.approval(), "test")
            site.membership.join(asked)
            trainer = site.membership.site()
            if run_id == "second":
                with pytest.raises(SiteError, match=r"privacy budget spent: .* would make it"):
                    trainer.describe()
                break
            terms = trainer.describe().privacy
            assert terms is not None
            assert terms.max_epsilon == budget
            weights = to_vector(trainer.trainer.network)
            for server_round, lr in enumerate(trainer.trainer.schedule.lrs):
                trainer.train(TrainTask(server_round, lr, 1, 0), weights)
            # one more round than was promised, whoever asks for it
            with pytest.raises(SiteError, match="privacy budget spent"):
                trainer.train(TrainTask(1, 0.001, 1, 0), weights)
    finally:
        site.close()
    assert [row.round for row in rows_of(dataset)] == [0, 1]
    charged = [what for event, what in recorded if event == "charged"]
    assert [what["round"] for what in charged] == [1, 2]
    assert charged[0]["epsilon"] < charged[1]["epsilon"] == pytest.approx(terms.epsilon)


def test_a_larger_delta_buys_nothing_from_a_budget(dataset: str, results: Path) -> None:
    """A coordinator that names a delta just below 1 / patients has a smaller epsilon for it."""
    usual, larger = (
        SitePrivacy(run, run.sites[0], load_dataset(dataset), 2, Budget()).terms(0)
        for run in (a_run(dataset, **SHORT), a_run(dataset, **SHORT, dp_delta=0.11))
    )
    assert usual.delta == pytest.approx(9**-1.1)
    assert larger.epsilon < usual.epsilon
    assert larger.epsilon_spent == usual.epsilon_spent == usual.epsilon
    assert not results.exists()


def test_a_hospital_s_budget_ends_a_study_before_the_trial_that_would_pass_it(
    dataset: str, results: Path, tmp_path: Path
) -> None:
    del results
    run = a_run(dataset, **{**SHORT, "rounds": 2, "iterations_per_epoch": 1})
    epsilon = SitePrivacy(run, run.sites[0], load_dataset(dataset), 1, Budget()).terms(0).epsilon
    private = {"dp_noise": 2.0, "dp_validation": "clear"}
    base = proposal("training", **private).settings
    terms = StudyTerms(
        *("private-study", base, {"momentum": [0.5, 0.9]}, 2, 4, 2, 1, 1, 4),
    )
    site = guarded(dataset, tmp_path, epsilon * 1.1)
    try:
        first = proposal("0", terms, **private)
        site.consent.approve(first.approval(), "test")
        site.membership.join(first)
        trainer = site.membership.site()
        trainer.describe()
        weights = to_vector(trainer.trainer.network)
        for server_round, lr in enumerate(trainer.trainer.schedule.lrs):
            trainer.train(TrainTask(server_round, lr, 1, 0), weights)
        site.membership.join(proposal("1", terms, momentum=0.5, **private))
        with pytest.raises(SiteError, match=r"privacy budget spent: .* would make it"):
            site.membership.site().describe()
    finally:
        site.close()
    assert [row.round for row in rows_of(dataset)] == [0, 1]


def test_a_hospital_with_a_budget_joins_no_federation_without_noise(
    dataset: str, results: Path, tmp_path: Path
) -> None:
    del results
    site = guarded(dataset, tmp_path, 8.0)
    asked = proposal("first", dp_batch=FederationSettings.dp_batch)
    site.consent.approve(asked.approval(), "test")
    with pytest.raises(SiteError, match="trains with differential privacy only"):
        site.membership.join(asked)
    site.close()
