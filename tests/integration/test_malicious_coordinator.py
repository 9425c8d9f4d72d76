"""A coordinator with the right key, and a site that answers only what its engineer approved."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coordinator import Coordinator, refusal
from flwr.app import Message, RecordDict

from nnunetv2_federated.federation.learning_rates import poly_lr
from nnunetv2_federated.federation.messages import PersonalReport, SiteScore, TrainReport, TrainTask
from nnunetv2_federated.federation.proposals import PlanProposal, Proposal
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.federation.study import StudyEnd, StudyTerms
from nnunetv2_federated.flower.deployment.site.guarded_site import GuardedSite
from nnunetv2_federated.flower.deployment.site.limits import Limits, Spent
from nnunetv2_federated.flower.deployment.site.local_site import LocalSite
from nnunetv2_federated.flower.deployment.site.serve import Responder
from nnunetv2_federated.flower.records import (
    unpack_payload,
    unpack_weights,
)
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.training.result_folder import one_run
from nnunetv2_federated.nnunet.training.weights import to_vector

SETTINGS = FederationSettings(
    rounds=2, initial_lr=0.01, iterations_per_epoch=1, val_iterations=2, batch_size=2
)


def proposal(**changes: Any) -> Proposal:
    content: dict[str, Any] = {
        "run_id": "first-run",
        "dataset": "Dataset777_OfTheServer",
        "configuration": "2d",
        "fold": 0,
        "trainer": "nnUNetTrainerFederated",
        "plans_name": "nnUNetPlans",
        "plans_hash": load_dataset("901").plans_hash,
        "site_index": 0,
        "settings": asdict(SETTINGS),
    }
    content |= changes
    own = {content["configuration"]: [content["fold"]]}
    return Proposal(**{"queue": own, **content})


def task(server_round: int, run_id: str = "first-run", **changes: Any) -> TrainTask:
    lr = poly_lr(server_round, 2, 0.01) if server_round < 2 else 0.0
    epochs = 1 if server_round < 2 else 0
    return dataclasses.replace(TrainTask(server_round, lr, epochs, 0, run_id=run_id), **changes)


@pytest.fixture
def guarded(
    dataset_2d: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[GuardedSite]:
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    limits = Limits(max_rounds=3, max_hours=1)
    opened = GuardedSite(LocalSite("bern", dataset_2d, tmp_path / "work", "cpu", limits))
    opened.consent.approve(proposal().approval(), "test")
    yield opened
    opened.pool.close()


def test_a_round_is_trained_once_as_approved_and_its_answer_sent_again(
    guarded: GuardedSite,
) -> None:
    coordinator = Coordinator(guarded)
    assert not coordinator.join(proposal()).has_error()
    weights = to_vector(guarded.membership.site().trainer.network).copy()

    for changes, text in (
        ({"lr": 1.0}, "refused lr 1.0: approved is 0.01"),
        ({"proximal_mu": 1e6}, "refused proximal_mu"),
        ({"local_epochs": 5}, "refused local_epochs 5: approved is 1"),
        ({"seconds": 1.0}, "refused seconds 1.0: approved is None"),
        ({"run_id": "another"}, "refused a task of another run"),
        ({"validate_received": 1}, "approved are none in this round"),
    ):
        assert text in refusal(coordinator.train(task(0, **changes), weights))
    first = coordinator.train(task(0), weights)
    again = coordinator.train(task(0), weights)

    np.testing.assert_array_equal(unpack_weights(first.content), unpack_weights(again.content))
    assert unpack_payload(first.content) == unpack_payload(again.content)
    assert coordinator.said[-1].startswith("round 1, learning rate 0.01000: the answer given")
    assert not np.array_equal(unpack_weights(first.content), weights)
    assert "another question for round 1" in refusal(coordinator.train(task(0), weights * 2))
    report = TrainReport.from_json(unpack_payload(first.content))
    assert report.site == "bern"
    assert guarded.ledger.spent("Dataset901_Balls").rounds == 1

    assert not coordinator.train(task(1, validate_received=2), weights).has_error()
    assert "the site is at round 2 already" in refusal(coordinator.train(task(0), weights))
    assert "approved are 2 rounds" in refusal(coordinator.train(task(2), weights))


def test_evaluations_are_counted_and_bounded(guarded: GuardedSite) -> None:
    coordinator = Coordinator(guarded)
    coordinator.join(proposal())
    weights = to_vector(guarded.membership.site().trainer.network).copy()

    def evaluate(**changes: Any) -> Message:
        return coordinator.ask("evaluate", task(2, **changes).to_json(), weights)

    assert "at most 2" in refusal(evaluate(validate_received=3))
    assert "at most 2" in refusal(evaluate(validate_received=10**7))
    good = evaluate(validate_received=2)
    assert json.loads(unpack_payload(good.content))["iterations"] == 2
    for model in range(3):  # other models on the same cases tell of these cases
        other = coordinator.ask(
            "evaluate", task(2, validate_received=2).to_json(), weights + 1 + model
        )
        assert "another question for the evaluation" in refusal(other)
    assert unpack_payload(evaluate(validate_received=2).content) == unpack_payload(good.content)
    assert guarded.ledger.spent("Dataset901_Balls").evaluations == 1


def test_a_personal_model_is_made_once_if_approved_and_ends_the_rounds(
    guarded: GuardedSite,
) -> None:
    coordinator = Coordinator(guarded)
    coordinator.join(proposal())
    weights = to_vector(guarded.membership.site().trainer.network).copy()

    def personal(weights: Any, server_round: int = 4) -> Message:
        return coordinator.ask("train.personal", task(server_round).to_json(), weights)

    assert "approved is none (--personal off)" in refusal(personal(weights))
    wanted = dataclasses.replace(SETTINGS, personal="finetune", personal_iterations=1)
    asked = proposal(settings=asdict(wanted), run_id="another-run")
    assert coordinator.join(asked).has_error()  # the approval was of none
    guarded.consent.approve(asked.approval(), "test")
    assert not coordinator.join(asked).has_error()
    mine = dataclasses.replace(task(4), run_id="another-run")

    def ask(vector: Any, **changes: Any) -> Message:
        changed = dataclasses.replace(mine, **changes)
        return coordinator.ask("train.personal", changed.to_json(), vector)

    assert "refused server_round 1: approved is 4" in refusal(ask(weights, server_round=1))
    # of whatever weights, over the personal model that the hospital may have in use
    assert "this site has trained no round of it" in refusal(ask(weights))
    first_round = dataclasses.replace(task(0), run_id="another-run")
    assert not coordinator.train(first_round, weights).has_error()
    answer = unpack_payload(ask(weights).content)
    # three validation cases are fewer than the five of --personal-min-cases
    assert PersonalReport.from_json(answer) == PersonalReport("bern")
    assert unpack_payload(ask(weights).content) == answer
    assert "another question for the personal model" in refusal(ask(weights * 2))
    second_round = dataclasses.replace(task(1), run_id="another-run")
    assert "the rounds of this run are over" in refusal(coordinator.train(second_round, weights))
    assert guarded.ledger.spent("Dataset901_Balls").evaluations == 1

    kept = Path(os.environ["nnUNet_results"]) / "Dataset901_Balls"  # noqa: SIM112
    fold = kept / "nnUNetTrainerPersonal__nnUNetPlans__2d" / "fold_0"
    assert (fold / "checkpoint_final.pth").is_file()
    assert (fold.parent / "plans.json").is_file()


def test_a_study_gets_what_was_approved_of_it_and_nothing_else(guarded: GuardedSite) -> None:
    guarded = GuardedSite(dataclasses.replace(guarded.here, limits=Limits(max_rounds=8)))
    coordinator = Coordinator(guarded)
    terms = StudyTerms(
        study_id="study-of-two",
        base=asdict(SETTINGS),
        search={"momentum": [0.5, 0.9]},
        trials=3,
        rounds=3,
        reduction=2,
        rungs=2,
        score_iterations=4,
        evaluations=1,
    )

    def trial(number: int) -> Proposal:
        settings = SETTINGS.changed(**({"momentum": 0.5} if number else {}))
        return proposal(
            settings=asdict(settings), study=terms, trial=number, run_id=terms.run_id(number)
        )

    assert "has not approved" in refusal(coordinator.join(trial(0)))
    larger = dataclasses.replace(terms, rounds=9)
    asked = dataclasses.replace(trial(0), study=larger)
    assert "at most 8 rounds with this dataset" in refusal(coordinator.join(asked))
    guarded.consent.approve(trial(0).approval(), "test")
    assert not coordinator.join(trial(0)).has_error()
    weights = to_vector(guarded.membership.site().trainer.network).copy()

    def ask(kind: str, number: int, step: int, **changes: Any) -> Message:
        changed = task(step, run_id=terms.run_id(number), **changes)
        return coordinator.ask(kind, changed.to_json(), weights)

    def score(number: int, step: int, vector: Any = weights, iterations: int = 4) -> Message:
        asked = TrainTask(step, 0.0, 0, iterations, run_id=terms.run_id(number))
        return coordinator.ask("evaluate.score", asked.to_json(), vector)

    assert not ask("train", 0, 0).has_error()
    assert "approved are scores after rounds 1, 2" in refusal(score(0, 3))
    for iterations in (5, -1):  # of this trainer's epoch more than was approved
        assert "at most 4" in refusal(score(0, 1, iterations=iterations))
    first = SiteScore.from_json(unpack_payload(score(0, 1).content))
    # three validation cases: no more than one block of them
    assert (first.site, len(first.blocks), first.blocks[0].iterations) == ("bern", 1, 4)
    assert SiteScore.from_json(unpack_payload(score(0, 1).content)) == first
    # of other weights it would tell of these cases once more
    assert "another question for the score after round 1" in refusal(score(0, 1, weights * 2))
    assert "1 evaluations approved for the study are given" in refusal(score(0, 2))
    for kind, step in (("evaluate.fully", 3), ("train.personal", 4)):
        assert "a trial of a study is scored only" in refusal(ask(kind, 0, step))

    assert not coordinator.join(trial(1)).has_error()  # without another approval
    states = Path(os.environ["nnUNet_results"]) / "studies" / "study-of-two"  # noqa: SIM112
    kept = "*/*/fold_0/federation/sites/bern/after_round_0.pt"
    assert "a task of another run" in refusal(ask("train", 0, 1))
    changed = dataclasses.replace(trial(1), settings=asdict(SETTINGS.changed(momentum=0.9)))
    assert "joined with other settings before" in refusal(coordinator.join(changed))
    assert not ask("train", 1, 0).has_error()
    assert {path.parts[-8] for path in states.glob(f"*/{kept}")} == {"trial_000", "trial_001"}
    wrong = StudyEnd("another-study", [0, 1], finished=False)
    assert "another study" in refusal(coordinator.ask("query.ended", wrong.to_json()))
    end = StudyEnd("study-of-two", [0], finished=False)
    assert not coordinator.ask("query.ended", end.to_json()).has_error()
    assert [path.parts[-8] for path in states.glob(f"*/{kept}")] == ["trial_001"]

    assert not ask("train", 1, 1).has_error()
    # three rounds were approved for all trials
    assert not coordinator.join(trial(2)).has_error()
    for _ in range(2):  # what is refused is not counted
        assert "3 rounds approved for the study are given" in refusal(ask("train", 2, 0))
    assert guarded.ledger.spent("Dataset901_Balls").rounds == 3
    spent = guarded.ledger.spent(terms.account)
    assert (spent.rounds, spent.evaluations) == (3, 1)
    # down and up in each of three rounds, and down for a score: asked twice, and of other weights
    assert spent.gigabytes == pytest.approx(9 * weights.nbytes / 1e9, rel=1e-4)
    assert 0 < spent.hours < 1
    guarded.consent.withdraw(trial(0).approval(), "test")
    assert "was withdrawn" in refusal(ask("train", 2, 0))
    assert "was withdrawn" in refusal(coordinator.ask("query.ended", end.to_json()))


def test_limits_add_up_over_starts_and_an_earlier_run_is_not_joined_again(
    guarded: GuardedSite,
) -> None:
    coordinator = Coordinator(guarded)
    coordinator.join(proposal())
    weights = to_vector(guarded.membership.site().trainer.network).copy()
    for server_round in (0, 1):
        assert not coordinator.train(task(server_round), weights).has_error()

    again = coordinator.join(proposal(run_id="second-run"))

    assert "at most 3 rounds with this dataset; 2 are spent" in refusal(again)
    spent = guarded.ledger.spent("Dataset901_Balls")
    assert (spent.rounds, spent.evaluations) == (2, 0)
    assert 0 < spent.hours < 1


def test_a_new_start_keeps_the_earlier_runs_state_until_its_own_first_round(
    guarded: GuardedSite,
) -> None:
    guarded = GuardedSite(dataclasses.replace(guarded.here, limits=Limits()))
    coordinator = Coordinator(guarded)
    coordinator.join(proposal())
    _, folder = guarded.membership.current()
    weights = to_vector(guarded.membership.site().trainer.network).copy()
    coordinator.train(task(0), weights)
    state = folder.with_name("federation.previous") / "sites" / "bern" / "after_round_0.pt"

    coordinator.join(proposal(run_id="second-run"))
    assert state.is_file()
    coordinator.join(proposal(run_id="third-run"))  # none of the second's rounds was saved
    assert state.is_file()
    assert "another run" in refusal(coordinator.train(task(0, run_id="second-run"), weights))
    assert not coordinator.train(task(0, run_id="third-run"), weights).has_error()
    assert not state.parents[2].exists()
    guarded.close()


def test_a_result_folder_in_use_is_not_joined(guarded: GuardedSite, tmp_path: Path) -> None:
    coordinator = Coordinator(guarded)
    fold = tmp_path / "results" / "Dataset901_Balls"
    fold = fold / "nnUNetTrainerFederated__nnUNetPlans__2d" / "fold_0"
    with one_run(fold):
        assert "another command is at work" in refusal(coordinator.join(proposal()))
    assert not coordinator.join(proposal()).has_error()


def test_hours_end_a_round_at_work_and_forbid_the_next(
    guarded: GuardedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = Coordinator(guarded)
    coordinator.join(proposal())
    weights = to_vector(guarded.membership.site().trainer.network).copy()
    guarded.ledger.spend(["Dataset901_Balls"], hours=0.5)
    assert guarded.work.seconds_left(task(0)) == pytest.approx(0.5 * 3600 * 0.8)
    monkeypatch.setattr("nnunetv2_federated.flower.deployment.site.work_guard._LOOK_SECONDS", 0.0)
    spend = guarded.ledger.spent

    with monkeypatch.context() as patched:  # an hour passes between two iterations
        patched.setattr(
            guarded.ledger,
            "spent",
            lambda name: Spent(hours=1) if guarded.meter.running else spend(name),
        )
        assert "has given its 1 hours" in refusal(coordinator.train(task(0), weights))

    assert not coordinator.train(task(0), weights).has_error()  # no answer had left
    guarded.ledger.spend(["Dataset901_Balls"], hours=0.6)
    assert "has given its 1 hours" in refusal(coordinator.train(task(1), weights))


def test_an_approval_is_taken_back_at_once_also_while_it_works(
    guarded: GuardedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = Coordinator(guarded)
    coordinator.join(proposal())
    weights = to_vector(guarded.membership.site().trainer.network).copy()
    monkeypatch.setattr("nnunetv2_federated.flower.deployment.site.work_guard._LOOK_SECONDS", 0.0)
    approval, look = proposal().approval(), guarded.work.check_going_on

    def withdrawn_meanwhile(hours: float) -> None:
        guarded.consent.withdraw(approval, "test")
        look(hours)

    monkeypatch.setattr(guarded.work, "check_going_on", withdrawn_meanwhile)
    assert "was withdrawn" in refusal(coordinator.train(task(0), weights))
    assert "was withdrawn" in refusal(coordinator.train(task(0), weights))
    assert "was withdrawn" in refusal(coordinator.ask("query.describe", "{}"))


def test_a_site_that_serves_another_dataset_has_to_be_asked_again(guarded: GuardedSite) -> None:
    coordinator = Coordinator(guarded)
    coordinator.join(proposal())
    other = GuardedSite(dataclasses.replace(guarded.here, dataset="Dataset999_Other"))
    coordinator.responder = Responder(other, coordinator.key.public_key(), coordinator.said.append)
    assert "serves another dataset" in refusal(coordinator.ask("query.describe", "{}"))


def test_plans_replaced_after_the_site_joined_are_not_trained(guarded: GuardedSite) -> None:
    coordinator = Coordinator(guarded)
    coordinator.join(proposal())
    plans = load_dataset("901").folder / "nnUNetPlans.json"
    before = plans.read_text()
    try:
        plans.write_text(
            json.dumps(json.loads(before) | {"original_median_spacing_after_transp": [9]})
        )
        assert "no dataset preprocessed" in refusal(coordinator.ask("query.describe", "{}"))
    finally:
        plans.write_text(before)
    assert not coordinator.ask("query.describe", "{}").has_error()


def test_a_planning_that_names_other_code_is_not_proposed(guarded: GuardedSite) -> None:
    coordinator = Coordinator(guarded)
    for planner in ({"planner": "os"}, {"planner": "np"}, {"preprocessor": "Pool"}):
        asked = PlanProposal("Dataset777_X", planner, ["2d"], 5, False, False)
        reason = refusal(coordinator.ask("query.survey", asked.to_json()))
        assert "refused a planning" in reason
    assert guarded.consent.proposed() is None


def test_a_signed_message_is_answered_once(guarded: GuardedSite) -> None:
    coordinator = Coordinator(guarded)
    message = coordinator.message("query.join", proposal().to_json())
    copy = RecordDict(dict(message.content))
    assert not coordinator.send(message).has_error()

    for _ in range(2):
        message.content = RecordDict(dict(copy))
        assert "is not newer than the last one" in refusal(coordinator.send(message))


@pytest.mark.parametrize("name", ["approved.json", "current.json", "ledger.json", "proposed.json"])
def test_an_empty_state_file_stops_the_site_in_one_line(guarded: GuardedSite, name: str) -> None:
    coordinator = Coordinator(guarded)
    coordinator.join(proposal())
    (guarded.here.folder / name).write_text("")

    if name != "proposed.json":
        reason = refusal(coordinator.ask("query.describe", "{}"))
        assert reason == "site bern: its saved state cannot be used; the site's log says more"
        assert f"{name} is empty: " in coordinator.said[-1]  # and what to do, at the site
    else:
        assert not coordinator.ask("query.describe", "{}").has_error()
        refused = coordinator.join(proposal(fold=1))
        assert "its saved state cannot be used" in refusal(refused)


def test_what_was_asked_and_what_left_is_recorded(guarded: GuardedSite) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    recorded = GuardedSite(
        guarded.here, record=lambda event, **fields: events.append((event, fields))
    )
    coordinator = Coordinator(recorded)
    joined = coordinator.join(proposal())
    coordinator.ask("query.describe", "{}")
    coordinator.train(task(0, lr=1.0), np.zeros(3, np.float32))

    assert [event for event, _ in events] == ["asked", "left"] * 2 + ["asked", "refused"]
    asked, left = events[0][1], events[1][1]
    assert asked["message"] == left["message"] == "query.join"
    assert events[-1][1]["round"] == 1
    assert len(asked["by"]) == len(asked["sha256"]) == len(left["sha256"]) == 64
    assert left["bytes"] == len(unpack_payload(joined.content))
    assert "refused lr" in events[-1][1]["reason"]
    recorded.close()
