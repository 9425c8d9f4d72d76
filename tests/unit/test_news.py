"""What a site's engineer reads while a federation runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from nnunetv2_federated.federation.messages import (
    FullValidation,
    PersonalReport,
    TrainReport,
    TrainTask,
    Validation,
)
from nnunetv2_federated.federation.personal import PersonalChoice, write_choice
from nnunetv2_federated.federation.progress import Progress, in_words
from nnunetv2_federated.federation.proposals import Proposal
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.flower.deployment.site.news import (
    ConnectionNews,
    RoundNews,
    describe_end,
    describe_round_here,
)
from nnunetv2_federated.flower.records import CONFIG, pack_payload, reply

CONTEXT = Context(1, 1, {}, RecordDict(), {})
FOLDER = Path("results/bern/validation")
# Dice 2*3/(2*3+1+1) = 0.75 and 2*1/(2*1+4+2) = 0.25, so 0.5; then 0.75 and 0.75
BEFORE = Validation(2, -0.1, [3.0, 1.0], [1.0, 4.0], [1.0, 2.0])
AFTER = Validation(2, -0.2, [3.0, 3.0], [1.0, 1.0], [1.0, 1.0])
NOTHING = Validation(0, 0.0, [0.0, 0.0], [0.0, 0.0], [0.0, 0.0])


def report(validation: Validation = AFTER, received: Validation | None = BEFORE) -> TrainReport:
    return TrainReport("bern", 5, -0.25, validation, received, 12.4)


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_round_is_told_with_the_sites_own_loss_and_dice_before_and_after() -> None:
    assert describe_round_here(2, 3, report()) == (
        "round 2 of 3 done: training loss -0.2500; Dice here 0.7500, of the model as it came "
        "0.5000; 12 s"
    )
    assert describe_round_here(2, None, report(received=None)) == (
        "round 2 done: training loss -0.2500; Dice here 0.7500; 12 s"
    )
    # a site without validation cases reports none
    assert describe_round_here(2, 3, report(NOTHING, NOTHING)) == (
        "round 2 of 3 done: training loss -0.2500; 12 s"
    )


def test_the_end_is_told_with_the_sites_own_dice_of_the_final_model() -> None:
    validation = FullValidation("bern", 12, {"Dice": 0.67, "IoU": 0.5}, {})
    assert describe_end(validation, 3, FOLDER) == (
        "federation finished after 3 rounds: Dice of the final model here 0.6700 (12 cases, "
        f"predictions in {FOLDER})"
    )
    assert describe_end(FullValidation("bern", 1, {"AUROC": None}, {}), None, FOLDER) == (
        "federation finished: AUROC of the final model here not defined (1 case, predictions in "
        f"{FOLDER})"
    )
    assert describe_end(FullValidation("bern", 0, {}, {}), 3, FOLDER) == (
        "federation finished after 3 rounds; this site has no validation case"
    )


def asked(kind: str, payload: str) -> Message:
    return Message(RecordDict({CONFIG: pack_payload(payload)}), 1, kind)


@pytest.mark.parametrize("personal", ["off", "finetune"])
def test_a_federation_is_followed_from_joining_to_its_end(personal: str, tmp_path: Path) -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    said: list[str] = []
    clock = Clock()
    news = RoundNews(said.append, lambda _: FOLDER, lambda _: tmp_path, clock)

    def answer(kind: str, payload: str, answered: str) -> None:
        news(asked(kind, payload), CONTEXT, lambda message, _: reply(message, answered))

    settings = asdict(FederationSettings(rounds=4, personal=personal))
    proposal = Proposal(
        *("run", "Dataset001_A", "2d", 0, {"2d": [0]}, "nnUNetTrainer", "nnUNetPlans", "0" * 64, 0),
        settings,
    )
    answer("query.join", proposal.to_json(), "{}")
    for server_round, now in enumerate((100.0, 130.0, 160.0)):  # the first one builds the trainer
        clock.now = now
        task = TrainTask(server_round, 0.01, 1, 0)
        answer(MessageType.TRAIN, task.to_json(), report().to_json())
    assert [line.partition(" done")[0] for line in said] == [f"round {n} of 4" for n in (1, 2, 3)]
    assert said[0].endswith("; 12 s")
    assert said[1].endswith("; 12 s; about 60 s left")
    assert said[2].endswith("; 12 s; about 30 s left")
    assert not news.finished

    validation = FullValidation("bern", 2, {"Dice": 0.5}, {})
    answer("evaluate.fully", TrainTask(5, 0.0, 0, 0).to_json(), validation.to_json())
    assert said[3].startswith("federation finished after 4 rounds: Dice of the final model here")
    if personal == "off":
        assert said[3].endswith("; waiting for the next (Ctrl-C ends)")
    else:
        assert said[3].endswith("; its personal model for this site comes next")
        assert not news.finished
        # too few cases for the server to be told, which the site's own terminal need not mind
        write_choice(tmp_path, PersonalChoice(2, "Dice", {0.0: 0.5, 0.25: 0.625, 1.0: 0.25}), "")
        done = PersonalReport("bern").to_json()
        answer("train.personal", TrainTask(6, 0.0, 0, 0).to_json(), done)
        assert said[4] == (
            "personal model: Dice here 0.5000 -> 0.6250 on 2 validation cases, with 25% of the "
            f"fine-tuned weights, in {tmp_path}; waiting for the next (Ctrl-C ends)"
        )
    assert news.finished


def test_a_server_that_is_starting_has_ended_or_refuses_is_told_once_each() -> None:
    said: list[str] = []
    clock = Clock()
    finished = False
    news = ConnectionNews(said.append, lambda: finished, clock)
    refused = "s:1 refuses this site (HTTP 412): its key is not registered, or the clocks differ."

    for now, reason in (
        (0.0, "no connection to s:1: refused"),
        (50.0, "no connection to s:1: timed out"),
        (100.0, refused),
        (129.0, refused),
    ):
        clock.now = now
        news.lost(reason)
    assert said == ["no connection to s:1: refused; the server is not ready yet, waiting for it"]

    clock.now = 130.0  # no server takes so long to let its sites in
    news.lost(refused)
    news.lost(refused)
    assert said[1:] == [f"{refused}; trying again"]

    news.connected("s:1")
    news.lost("the connection to s:1 broke: reset")
    assert said[2:] == ["connected to s:1", "the connection to s:1 broke: reset; connecting again"]

    news.connected("s:1")
    finished = True
    for reason in ("the connection to s:1 broke: reset", "no connection to s:1: refused"):
        news.lost(reason)
    assert said[5:] == [
        "the server has ended, as its federation is finished; waiting for the next (Ctrl-C ends)"
    ]


def test_a_server_that_does_not_know_the_key_yet_is_not_ready() -> None:
    said: list[str] = []
    ConnectionNews(said.append, lambda: False, Clock()).lost("s:1 refuses this site (HTTP 412).")
    assert said == ["the server is not ready yet: it does not know this site's key so far; waiting"]


def test_the_time_left_is_known_from_the_second_step_on_and_not_at_the_end() -> None:
    clock = Clock()
    progress = Progress(clock, total=5)
    told = []
    for number, now in ((2, 1000.0), (3, 1100.0), (4, 1300.0), (5, 1301.0)):
        clock.now = now
        told.append(progress.finished(number))
    assert told == [None, "3 min", "2 min", None]  # 200 s; 150 s
    assert Progress(clock).finished(1) is None


def test_durations_have_a_unit_that_suits_them() -> None:
    seconds = (45, 89, 90, 5000, 5400, 129600, 180000)
    assert [in_words(s) for s in seconds] == [
        *("45 s", "89 s", "2 min", "83 min", "1.5 h", "1.5 days", "2.1 days"),
    ]
