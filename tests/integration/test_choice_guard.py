"""A site measures the predictions that it kept, of what was approved, and each candidate once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_find_best_configuration import pretend_training

from nnunetv2_federated.federation.best_configuration import Candidate
from nnunetv2_federated.federation.choosing import (
    ChoiceOffer,
    ChoiceProposal,
    ScoreTask,
    check_score,
)
from nnunetv2_federated.federation.errors import FederationError, SiteError
from nnunetv2_federated.federation.messages import FullValidation
from nnunetv2_federated.federation.run import read_run
from nnunetv2_federated.flower.deployment.site.consent import NotApprovedError
from nnunetv2_federated.flower.deployment.site.guarded_site import GuardedSite
from nnunetv2_federated.flower.deployment.site.limits import Limits
from nnunetv2_federated.flower.deployment.site.local_site import LocalSite
from nnunetv2_federated.flower.deployment.site.proposal_text import describe
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.data.folds import fold_split
from nnunetv2_federated.nnunet.evaluation.site_predictions import (
    SitePredictions,
    Starmap,
    in_workers,
)

NAMES = ("2d", "3d_fullres")
FOLDS = [0, 1, 2]


@pytest.fixture
def site(dataset_3d: str, results: Path, tmp_path: Path) -> GuardedSite:
    """A hospital that has validated three folds of two configurations, by predictions at random."""
    limits = Limits(max_evaluations=1)
    opened = GuardedSite(LocalSite("bern", dataset_3d, tmp_path / "work", "cpu", limits))
    dataset = load_dataset(dataset_3d)
    everything = {"bern": fold_split(dataset, "3d_fullres", "all")[0]}
    for name in NAMES:
        pretend_training(dataset, results, name, 3, everything)
        for fold in FOLDS:
            place = results / dataset.name / f"nnUNetTrainerFederated__nnUNetPlans__{name}"
            folder = place / f"fold_{fold}" / "federation"
            kept = folder / "sites" / "bern"
            kept.mkdir(parents=True)
            shutil.move(folder.parent / "validation", kept / "validation")
            opened.ledger.open_run(f"abc.{name}.{fold}", folder)
            assert read_run(folder).fold == fold
    return opened


def proposal(dataset: str, **changes: Any) -> ChoiceProposal:
    content: dict[str, Any] = {
        "dataset": "Dataset777_OfTheServer",
        "trainer": "nnUNetTrainer",
        "plans_name": "nnUNetPlans",
        "plans_hash": load_dataset(dataset).plans_hash,
        "queue": dict.fromkeys(NAMES, FOLDS),
        "ensembles": True,
        "min_cases": 5,
        "run_ids": {name: [f"abc.{name}.{fold}" for fold in FOLDS] for name in NAMES},
    }
    return ChoiceProposal(**content | changes)


def task(asked: ChoiceProposal, *configurations: str, removals: Any = ()) -> ScoreTask:
    return ScoreTask.of(asked.approval(), Candidate(configurations, tuple(removals)))


def test_only_what_was_approved_is_measured_and_each_candidate_once(
    site: GuardedSite, dataset_3d: str
) -> None:
    asked = proposal(dataset_3d)
    with pytest.raises(NotApprovedError, match="not approved choice"):
        site.choice.offer(asked)
    with pytest.raises(SiteError, match="has not agreed to the choice"):
        site.choice.score(task(asked, "2d"))
    site.consent.approve(asked.approval(), "test")
    assert site.choice.offer(asked).cases == 6
    first = site.choice.score(task(asked, "2d"))
    assert (first.site, first.cases) == ("bern", 6)
    assert "case_" not in first.to_json()
    both = site.choice.score(task(asked, *NAMES))
    assert both.foreground_mean["Dice"] != first.foreground_mean["Dice"]
    site.choice.score(task(asked, "2d", removals=[(1, 2), (2,)]))

    for other, text in (
        (("3d_lowres",), "a candidate that was not approved"),
        (("2d", "3d_lowres"), "a candidate that was not approved"),
    ):
        with pytest.raises(SiteError, match=text):
            site.choice.score(task(asked, *other))
    for removals in ([(2,), (1,)], [(1,), (1,)], [(1,), (1, 2)], [(3,)], [(0,)]):
        with pytest.raises(SiteError, match="a postprocessing that nnU-Net does not try"):
            site.choice.score(task(asked, "2d", removals=removals))

    # the same again: the same answer, whatever has become of the predictions
    folder = site.ledger.folder_of("abc.2d.0") / "sites" / "bern" / "validation"
    predicted = sorted(folder.glob("*.nii.gz"))
    shutil.copyfile(predicted[1], predicted[0])
    assert site.choice.score(task(asked, "2d")) == first
    # nnU-Net's rules come to 2 + 1 + 1 + 2 candidates
    for removals in ([(1, 2)], [(1,)], [(2,)]):
        site.choice.score(task(asked, "3d_fullres", removals=removals))
    with pytest.raises(SiteError, match="has measured all candidates"):
        site.choice.score(task(asked, "3d_fullres"))

    site.consent.withdraw(asked.approval(), "test")
    with pytest.raises(SiteError, match="was withdrawn"):
        site.choice.score(task(asked, "2d"))
    assert site.ledger.spent(load_dataset(dataset_3d).name).evaluations == 1
    again = proposal(dataset_3d, ensembles=False)
    site.consent.approve(again.approval(), "test")
    with pytest.raises(SiteError, match="has given its 1 evaluations"):
        site.choice.offer(again)


@pytest.mark.parametrize(
    "changes",
    [
        {"run_ids": {name: ["abc.2d.0"] * 3 for name in NAMES}},
        {"run_ids": {name: [f"other.{name}.{fold}" for fold in FOLDS] for name in NAMES}},
        {"plans_hash": "0" * 64},
        {"plans_name": "nnUNetPlansOther"},
        {"queue": {"2d": [0]}, "run_ids": {"2d": ["abc.2d.1"]}},
    ],
)
def test_predictions_of_other_trainings_are_refused_in_the_same_words(
    site: GuardedSite, dataset_3d: str, changes: dict[str, Any]
) -> None:
    asked = proposal(dataset_3d, **changes)
    site.consent.approve(asked.approval(), "test")
    with pytest.raises(SiteError, match="site bern: lacks predictions of the trainings") as refused:
        site.choice.offer(asked)
    assert "/" not in str(refused.value)


def test_a_site_killed_while_it_measures_has_given_one_evaluation(
    site: GuardedSite, dataset_3d: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = proposal(dataset_3d)
    site.consent.approve(asked.approval(), "test")
    site.choice.offer(asked)
    with monkeypatch.context() as killed:
        killed.setattr(SitePredictions, "score", interrupt)
        with pytest.raises(KeyboardInterrupt):
            site.choice.score(task(asked, "2d"))
    site.choice.offer(asked)
    assert site.choice.score(task(asked, "2d")).cases == 6
    assert site.ledger.spent(load_dataset(dataset_3d).name).evaluations == 1


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_worker_that_is_ended_ends_the_measuring() -> None:
    with pytest.raises(FederationError, match="was ended"), in_workers() as starmap:
        starmap(os._exit, [(1,)])


def test_an_approval_withdrawn_while_cases_are_measured_ends_it(
    site: GuardedSite, dataset_3d: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = proposal(dataset_3d)
    site.consent.approve(asked.approval(), "test")
    site.choice.offer(asked)
    monkeypatch.setattr("nnunetv2_federated.flower.deployment.site.work_guard._LOOK_SECONDS", 0.0)
    monkeypatch.setattr(SitePredictions, "score", withdrawing(site, asked))
    with pytest.raises(SiteError, match="was withdrawn"):
        site.choice.score(task(asked, "2d"))


def withdrawing(site: GuardedSite, asked: ChoiceProposal) -> Callable[..., Any]:
    measured = SitePredictions.score

    def score(self: SitePredictions, candidate: Candidate, starmap: Starmap) -> FullValidation:
        site.consent.withdraw(asked.approval(), "test")
        return measured(self, candidate, starmap)

    return score


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"site": "oslo"}, "site bern: answers for other cases"),
        ({"cases": 7}, "site bern: answers for other cases"),
        ({"mean": {}}, "site bern: answers for other classes"),
        ({"mean": {"1": {"Dice": [0.5, 5]}}}, "site bern: answers for other classes"),
        (
            {"mean": {str(n): {"Dice": [0.5, 5]} for n in (1, 2, 99)}},
            "site bern: answers for other classes",
        ),
        (
            {"mean": {"1": {"Dice": [0.5, 5]}, "2": {"IoU": [0.5, 5]}}},
            "site bern: answers for other classes",
        ),
    ],
)
def test_an_answer_of_other_cases_or_classes_is_refused_by_name(
    changes: dict[str, Any], text: str
) -> None:
    whole = {"1": {"Dice": [0.5, 6]}, "2": {"Dice": [0.5, 6]}}
    answer = FullValidation("bern", 6, {"Dice": 0.5}, whole)
    offer = ChoiceOffer("bern", 6)
    assert check_score(answer, offer, ["1", "2"]) == answer
    with pytest.raises(SiteError, match=text):
        check_score(replace(answer, **changes), offer, ["1", "2"])


def test_too_few_cases_are_offered_and_not_measured(site: GuardedSite, dataset_3d: str) -> None:
    asked = proposal(dataset_3d, min_cases=7)
    site.consent.approve(asked.approval(), "test")
    assert site.choice.offer(asked).cases == 6
    with pytest.raises(SiteError, match="6 validation cases, fewer than the 7 approved"):
        site.choice.score(task(asked, "2d"))


def test_an_engineer_reads_what_is_told(dataset_3d: str) -> None:
    asked = proposal(dataset_3d)
    lines = describe(asked, None, [])
    assert "2d, folds 0 1 2; 3d_fullres, folds 0 1 2" in lines[0]
    assert "of ensembles of two" in lines[1]
    assert "at least 5" in lines[2]
    assert (
        replace(asked, run_ids={n: ["x", "y", "z"] for n in NAMES}).approval() == asked.approval()
    )
    for changes in (
        {"queue": {"2d": [0, 1, 2], "3d_fullres": [0, 1]}},
        {"queue": {"2d": [0, 0, 2], "3d_fullres": [0, 0, 2]}},
        {"run_ids": {"2d": ["a", "b", "c"]}},
        {"min_cases": 2},
    ):
        with pytest.raises(SiteError, match="not a valid ChoiceProposal"):
            ChoiceProposal.from_json(json.dumps(json.loads(asked.to_json()) | changes))
