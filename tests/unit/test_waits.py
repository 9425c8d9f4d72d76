"""How long the server waits, for whom, and who is named when it is over."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
from doubles import Clock, http_error, tree
from flwr.app import Error, Message, MessageType, RecordDict
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.task_identity import TaskIdentity

from nnunetv2_federated.federation.errors import RoundError, SettingsError, SiteError
from nnunetv2_federated.federation.messages import SiteDescription
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.federation.study import StudyTerms
from nnunetv2_federated.federation.waiting import Grace
from nnunetv2_federated.flower.asking import ask
from nnunetv2_federated.flower.deployment.message_objects import check_parts
from nnunetv2_federated.flower.deployment.server import network_grid as network
from nnunetv2_federated.flower.deployment.server.inquiry import Inquiry
from nnunetv2_federated.flower.deployment.server.processes import Child
from nnunetv2_federated.flower.enrolment import Enrolment
from nnunetv2_federated.flower.participants import Participants, Requirements
from nnunetv2_federated.flower.records import CONFIG, NOT_YET, pack_payload, unpack_payload

PLANS = "0" * 64
NAMES = {11: "bern", 12: "lyon", 13: "oslo"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    return Clock(monkeypatch)


# How long for the others


@pytest.mark.parametrize(
    ("asked", "answered", "needed", "end"),
    [
        (5, [], 3, math.inf),
        (5, [100, 200], 3, math.inf),  # no majority yet
        (5, [300, 100, 200], 3, 300 + 4 * 300),  # 300 s until more than half were there
        (5, [300, 100, 200, 900], 3, 300 + 4 * 300),  # who comes later changes nothing
        (5, [1, 2, 3], 3, 3 + 600),  # at least that long
        (5, [300, 100, 200], 5, math.inf),  # all are needed
        (5, [1, 2, 300], 1, 300 + 4 * 300),  # a fast minority does not hurry the others
        (2, [10], 2, math.inf),  # one of two is no majority
    ],
)
def test_the_others_get_four_times_what_the_majority_took(
    asked: int, answered: list[float], needed: int, end: float
) -> None:
    assert Grace(600.0, lambda count: min(needed, count)).ends(asked, answered) == end


def test_who_was_silent_the_last_time_gets_half_as_long_as_the_majority() -> None:
    grace = Grace(600.0, lambda count: min(3, count))
    assert grace.ends(5, [100, 200, 300], known=True) == 300 + 150
    assert grace.ends(5, [100, 200], known=True) == math.inf


class Exchange(network.NetworkGrid):
    """A Grid whose sites answer after so many seconds each; ``None``: not at all."""

    def __init__(self, clock: Clock, takes: dict[int, float | None]) -> None:
        self.clock, self.takes = clock, takes
        self.grace = Grace(600.0, lambda count: min(2, count))
        self._silent = set()

    def guard_storage(self) -> None:
        """Nothing is stored."""

    def inquiry(self, seconds: float) -> Any:
        del seconds
        return Due(self.clock, self.takes)


class Due:
    def __init__(self, clock: Clock, takes: dict[int, float | None]) -> None:
        self.clock, self.takes, self.asked = clock, takes, clock.now
        self.questions: dict[int, Message] = {}

    @property
    def open(self) -> set[int]:
        return set(self.questions)

    def send(self, questions: list[Message]) -> None:
        self.questions = {q.metadata.dst_node_id: q for q in questions}

    def look(self) -> Iterator[Message]:
        for node in list(self.questions):
            takes = self.takes[node]
            if takes is not None and self.clock.now >= self.asked + takes:
                yield answered(self.questions.pop(node), "1")


def test_a_site_that_hangs_costs_the_whole_grace_once_and_takes_part_again_when_it_is_well(
    clock: Clock,
) -> None:
    grid = Exchange(clock, {11: 90.0, 12: None, 13: 100.0})

    def one_round() -> tuple[float, set[int]]:
        began = clock.now
        replies = list(grid.send_and_receive(questions(), timeout=5000))
        return clock.now - began, {reply.metadata.src_node_id for reply in replies}

    assert one_round() == (700.0, {11, 13})
    assert one_round() == (150.0, {11, 13})
    grid.takes[12] = 149.0
    assert one_round() == (149.0, {11, 12, 13})
    grid.takes[12] = 400.0  # slow as it may be: it has answered
    assert one_round() == (400.0, {11, 12, 13})


@pytest.mark.parametrize(
    ("count", "min_replies", "remote", "needed"),
    [
        (1, None, True, 1),
        (2, None, True, 2),
        (3, None, True, 2),
        (4, None, True, 3),
        (5, None, True, 3),
        (5, None, False, 5),
        (5, 4, True, 4),
        (3, 4, True, 3),
        (5, 1, False, 1),
    ],
)
def test_more_than_half_of_the_hospitals_are_needed_and_all_sites_of_one_machine(
    count: int, min_replies: int | None, remote: bool, needed: int
) -> None:
    settings = FederationSettings(min_replies=min_replies)
    assert settings.needed(count, remote=remote) == needed


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan, None, "9"])
def test_a_deadline_for_answers_is_a_number_of_seconds(seconds: Any) -> None:
    with pytest.raises(SettingsError, match=r"^--answer-deadline .*a number of seconds above 0"):
        FederationSettings(answer_deadline=seconds)


# Sites that join


class FakeGrid:
    """Sites of which each answers what it is told to, when it is told to, or nothing."""

    sequential = False

    def __init__(self, clock: Clock, answers: dict[int, Any]) -> None:
        self.clock = clock
        self.answers = answers
        self.online = dict(NAMES)
        self.asked: list[int] = []
        self.questions: dict[int, Message] = {}

    def site_names(self) -> dict[int, str]:
        return dict(self.online)

    def get_node_ids(self) -> list[int]:
        return list(self.online)

    def inquiry(self, seconds: float) -> FakeGrid:
        del seconds
        return self

    def send(self, questions: list[Message]) -> None:
        self.questions |= {q.metadata.dst_node_id: q for q in questions}
        self.asked += [q.metadata.dst_node_id for q in questions]

    def give_up(self, nodes: set[int]) -> None:
        for node in nodes:
            del self.questions[node]

    def look(self) -> Iterator[Message]:
        for node, question in list(self.questions.items()):
            answer = self.answers[node]
            if answer is not None:
                del self.questions[node]
                yield answered(question, answer)


def answered(question: Message, answer: Any) -> Message:
    if isinstance(answer, Error):
        return Message(answer, reply_to=question)
    content = RecordDict({CONFIG: pack_payload(answer)})
    reply = Message(content, reply_to=question)
    reply.metadata.__dict__["_src_node_id"] = question.metadata.dst_node_id
    return reply


def describe(name: str, **changes: Any) -> str:
    return json.dumps(json.loads(SiteDescription(name, 5, 2, "m", PLANS).to_json()) | changes)


def participants(
    grid: FakeGrid,
    said: list[str],
    *,
    study: StudyTerms | None = None,
    trial: int | None = None,
    **settings: Any,
) -> Participants:
    class Listening(Observer):
        def say(self, text: str) -> None:
            said.append(text)

    chosen = FederationSettings(wait_for_sites=20.0, **settings)
    names = tuple(NAMES.values())
    run = Run(
        "Dataset901_A",
        "2d",
        0,
        "t",
        "p",
        "cpu",
        chosen,
        remote_sites=names,
        sites=(),
        run_id="run" if study is None else study.run_id(trial or 0),
        study=study,
        trial=trial,
    )
    return Participants(grid, run, Requirements("m", PLANS), Listening())  # type: ignore[arg-type]


def test_a_site_that_accepts_to_join_and_says_nothing_holds_nobody_up(clock: Clock) -> None:
    """At the start it is waited for as long as that was said, before a round not at all."""
    grid = FakeGrid(clock, {11: describe("bern"), 12: None, 13: describe("oslo")})
    said: list[str] = []
    here = participants(grid, said)
    began = clock.now

    here.gather()
    assert 20 <= clock.now - began < 22
    assert said[-1] == "beginning without all sites. lyon: asked, and silent"
    began = clock.now
    for _ in range(50):
        assert here.present(NAMES.values(), 2) == {"bern": 11, "oslo": 13}
    assert clock.now == began
    assert grid.asked.count(12) == 1  # its question stays open

    for _ in range(3):
        clock.now += 901
        here.present(NAMES.values(), 2)
        here.present(NAMES.values(), 2)
    assert [text for text in said if "no answer" in text] == [
        "lyon: no answer to join within 900 s"
    ]
    grid.answers[12] = describe("lyon")  # it has come to itself
    here.present(NAMES.values(), 2)
    assert set(here.present(NAMES.values(), 2)) == {"bern", "lyon", "oslo"}


def test_a_trial_of_a_study_begins_with_all_sites_or_not_at_all(clock: Clock) -> None:
    """What others have scored cannot be compared with it."""
    grid = FakeGrid(clock, {11: describe("bern"), 12: None, 13: describe("oslo")})
    terms = StudyTerms(
        *(
            "abc",
            asdict(FederationSettings(wait_for_sites=20.0)),
            {"momentum": [0.5, 0.9]},
            3,
            360,
            3,
            1,
            20,
            6,
        )
    )
    here = participants(grid, [], study=terms, trial=0)
    with pytest.raises(RoundError, match=r"2 of 3 sites take part, 3 are required.*lyon: asked"):
        here.gather()


def test_too_few_sites_end_the_start_in_time_with_what_each_said(clock: Clock) -> None:
    refusal = Error(NOT_YET, "has not approved")
    grid = FakeGrid(clock, {11: describe("bern"), 12: None, 13: refusal})
    here = participants(grid, [])
    began = clock.now
    with pytest.raises(RoundError) as error:
        here.gather()
    assert clock.now - began < 22
    assert str(error.value) == (
        "1 of 3 sites take part, 2 are required (--min-replies). "
        "lyon: asked, and silent; oslo: has not approved"
    )


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("[" * 100_000, "oslo: "),
        (describe("oslo", declared={"labels": 10**400}), None),
        (describe("oslo", site=None), "oslo: "),
        (Error(2, "\x1b[2J\n[/x]"), "oslo: [2J [/x]"),
        (Error(2, "x" * 10**6), "oslo: xxx"),
    ],
)
def test_whatever_a_site_answers_only_that_site_is_refused(
    clock: Clock, answer: Any, reason: str | None
) -> None:
    grid = FakeGrid(clock, {11: describe("bern"), 12: describe("lyon"), 13: answer})
    said: list[str] = []
    here = participants(grid, said)
    here.gather()
    assert {"bern", "lyon"} <= {site.site for site in here.sites.values()}
    assert all(len(text) < 1000 and text.isprintable() for text in said)
    assert reason is None or any(text.startswith(reason) for text in said)


def test_what_breaks_a_reader_is_the_failure_of_its_site(clock: Clock) -> None:
    grid = FakeGrid(clock, {11: "good", 12: "bad", 13: "good"})

    def read(payload: str) -> Any:
        if payload == "bad":
            raise OverflowError("too\nlarge")

        class Named:
            site = "bern"

        return Named()

    said: list[str] = []
    enrolment = Enrolment(
        grid, list(NAMES.values()), "join", question=str, read=read, say=said.append
    )
    enrolment.look()
    assert "lyon: its answer cannot be read (OverflowError): too large" in said
    assert "bern takes part" in said
    assert "oslo: the key of oslo was used by a site that calls itself bern" in said


def test_a_site_that_was_killed_is_waited_for_before_a_round_but_once(clock: Clock) -> None:
    grid = FakeGrid(clock, {node: describe(name) for node, name in NAMES.items()})
    here = participants(grid, [])
    here.gather()
    del grid.online[12]

    began = clock.now
    assert set(here.present(NAMES.values(), 2)) == {"bern", "oslo"}
    assert 20 <= clock.now - began < 22
    began = clock.now
    assert set(here.present(NAMES.values(), 2)) == {"bern", "oslo"}
    assert clock.now == began

    grid.online[12] = "lyon"
    assert set(here.present(NAMES.values(), 2)) == set(NAMES.values())
    del grid.online[12]
    here.present(NAMES.values(), 2)
    assert clock.now - began >= 20  # it came back in between


def test_with_min_replies_nobody_beyond_them_is_waited_for(clock: Clock) -> None:
    grid = FakeGrid(clock, {node: describe(name) for node, name in NAMES.items()})
    here = participants(grid, [], min_replies=2)
    here.gather()
    del grid.online[12]
    began = clock.now
    assert set(here.present(NAMES.values(), 2)) == {"bern", "oslo"}
    assert clock.now == began


# Answers, one by one


def test_who_is_silent_or_breaks_the_reader_is_named_and_the_rest_goes_on(clock: Clock) -> None:
    class Silent(FakeGrid):
        def send_and_receive(
            self, messages: list[Message], *, timeout: float | None = None
        ) -> Iterator[Message]:
            assert timeout == 30
            self.send(messages)
            yield from self.look()
            yield answered(messages[0], "1")  # once more: ignored

    grid = Silent(clock, {11: "1", 12: None, 13: "1e400"})
    questions = {node: RecordDict() for node in NAMES}
    answers = ask(grid, MessageType.EVALUATE, questions, lambda text: int(float(text)), 30)  # type: ignore[arg-type]
    found = dict(answers)

    assert found[11] == 1
    assert str(found[12]) == "no answer in time"
    assert str(found[13]).startswith("its answer cannot be read (OverflowError)")


# What the SuperLink fails over


def test_a_message_has_no_more_parts_than_its_bytes_need() -> None:
    chunks = [tree() for _ in range(30)]  # 150 MB of weights
    legal = tree(tree(tree(), tree(), tree(tree(*chunks))))
    check_parts(legal, 150 * 2**20)

    many = tree(tree(*[tree(tree(tree())) for _ in range(6000)]))
    deep = tree(tree(tree(tree(tree(tree())))))
    for refused in (many, deep, tree(*[tree()] * 6000)):
        with pytest.raises(SiteError, match="more than 46 parts, or nested too deeply"):
            check_parts(refused, 150 * 2**20)


class Flaky:
    """A SuperLink that fails over what one of the sites sent, and over all it is asked with it."""

    def __init__(self, fails: Callable[[list[int]], int | None]) -> None:
        self.node, self.patience = Node(node_id=1), 0.0
        self.fails = fails
        self.sent: dict[str, Message] = {}
        self.polls: list[int] = []

    @property
    def impatient(self) -> Flaky:
        return self

    def get_nodes(self) -> list[Any]:
        return []

    def refused(self) -> dict[int, str]:
        return {}

    def guard_storage(self) -> None:
        """Nothing is stored."""

    def forget(self, message: str) -> None:
        """Nothing is stored."""

    def send(self, messages: list[Message]) -> dict[str, Message]:
        self.sent |= {str(m.metadata.dst_node_id): m for m in messages}
        return {str(m.metadata.dst_node_id): m for m in messages}

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:  # noqa: N802
        self.polls.append(len(request.message_ids))
        status = self.fails(sorted(map(int, request.message_ids)))
        if status is not None:
            raise http_error(status)
        return PullAppMessagesResponse()


def questions() -> list[Message]:
    content = RecordDict({CONFIG: pack_payload("a")})
    return [Message(RecordDict(dict(content)), node, MessageType.TRAIN) for node in NAMES]


def test_an_answer_over_which_the_superlink_fails_is_that_sites_failure_only(clock: Clock) -> None:
    link = Flaky(lambda nodes: 500 if 12 in nodes else None)
    inquiry = Inquiry(link, 3600)  # type: ignore[arg-type]
    inquiry.send(questions())

    assert list(inquiry.look()) == []
    assert link.polls == [3, 1, 1, 1]
    clock.now += 119
    assert list(inquiry.look()) == []
    clock.now += 2
    (failure,) = inquiry.look()
    assert failure.metadata.src_node_id == 12
    assert "the SuperLink fails over its answer again and again" in failure.error.reason
    assert inquiry.open == {11, 13}


def test_a_superlink_that_is_busy_for_a_while_is_nobodys_failure(clock: Clock) -> None:
    busy = iter([500, 500, 500, 500, *[None] * 9, 500, 500, 500, 500, *[None] * 9])
    link = Flaky(lambda _: next(busy))
    inquiry = Inquiry(link, 3600)  # type: ignore[arg-type]
    inquiry.send(questions())
    for _ in range(8):
        clock.now += 60
        assert list(inquiry.look()) == []
    assert inquiry.open == set(NAMES)


def test_a_run_that_was_given_up_ends_the_inquiry(clock: Clock) -> None:
    del clock
    inquiry = Inquiry(Flaky(lambda _: 403), 3600)  # type: ignore[arg-type]
    inquiry.send(questions())
    with pytest.raises(httpx.HTTPStatusError):
        list(inquiry.look())


def test_the_superlink_is_asked_again_after_500_for_some_minutes_only(clock: Clock) -> None:
    tries = []

    def fail(status: int) -> None:
        tries.append(clock.now)
        raise http_error(status)

    with pytest.raises(httpx.HTTPStatusError):
        network._patient().invoke(fail, 500)
    assert len(tries) > 10
    assert 295 < tries[-1] - tries[0] < 310
    tries.clear()
    with pytest.raises(httpx.HTTPStatusError):
        network._patient().invoke(fail, 404)
    assert len(tries) == 1


def test_a_question_lives_as_long_as_its_answer_is_waited_for(clock: Clock) -> None:
    """Flower's own forgets it after 12 hours."""
    del clock
    link = Flaky(lambda _: None)
    inquiry = Inquiry(link, 100_000)  # type: ignore[arg-type]
    inquiry.send(questions())
    assert {message.metadata.ttl for message in link.sent.values()} == {100_000}
    assert unpack_payload(link.sent["11"].content) == "a"


def test_a_child_that_cannot_be_started_is_said_and_not_waited_for(tmp_path: Path) -> None:
    child = Child(["/no/such/command"], tmp_path / "log", {})
    child.start()
    child.stop()
    assert "No such file" in child.last_line()
