"""Bytes in, a checked payload or a SiteError out: fuzzed at both ends of the wire.

Seeds are legal messages of every kind and the attacks that once ended a federation. Mutations are
of bytes, of JSON, of the tree of a message's parts, and of arrays.
"""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
)
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_federated.federation.choosing import ChoiceOffer, ChoiceProposal, ScoreTask
from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.federation.evaluated_model import ModelDescription
from nnunetv2_federated.federation.evaluation import (
    EvaluationOffer,
    EvaluationProposal,
    MeasureTask,
    Moments,
    MomentsOfLabels,
    SiteEvaluation,
    WeightsReceipt,
    WeightsTask,
)
from nnunetv2_federated.federation.fingerprint import (
    CaseFingerprint,
    SiteFingerprint,
    summarise_cases,
)
from nnunetv2_federated.federation.intensities import Channel
from nnunetv2_federated.federation.messages import (
    FingerprintTask,
    FullValidation,
    PersonalReport,
    PrepareReport,
    PrepareTask,
    PrivacyTerms,
    SiteDescription,
    SiteScore,
    SiteSurvey,
    TrainReport,
    TrainTask,
    Validation,
)
from nnunetv2_federated.federation.proposals import PlanProposal, Proposal
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.federation.study import StudyEnd, StudyReceipt, StudyTerms
from nnunetv2_federated.flower.deployment.message_objects import put_together
from nnunetv2_federated.flower.records import (
    ARRAYS,
    CONFIG,
    pack_payload,
    pack_weights,
    unpack_payload,
    unpack_weights,
)
from nnunetv2_federated.flower.replies import ReplyFormat

TRIALS = 10_000
BATCH = 10
SENT = np.linspace(-1, 1, 50, dtype=np.float32)
DESCRIBED = SiteDescription(
    "bern", 5, 2, "m", "p", {"labels": {"a": 0}}, {"torch": "2"}, "cpu", 1.0
)
VALIDATION = Validation(2, -0.5, [3.0, 1.0], [1.0, 0.0], [0.0, 2.0])
REPORT = TrainReport("bern", 5, -0.25, VALIDATION, VALIDATION, 1.5, 0.5)
CASE = CaseFingerprint(
    (1.0, 0.5, 0.5), (10, 20, 30), 0.5, (Channel.of(np.arange(7, dtype=np.float32)),)
)
HASH = "0" * 64

MEASURED = MomentsOfLabels(
    {"1": {"Dice": Moments(6, 5, 0.5, 0.1, [0.4]), "HD95": None}}, {"Dice": None, "HD95": None}
)
MODEL = ModelDescription(
    *({"plans_name": "P"}, {"labels": {"a": 1}}, "2d", "nnUNetTrainer", [0, 1], [HASH] * 2, 50),
    *(HASH, [0, 1], []),
)

ANSWERS: dict[type, Any] = {
    TrainReport: REPORT,
    Validation: VALIDATION,
    SiteDescription: DESCRIBED,
    SiteSurvey: SiteSurvey(
        "bern", 5, {"0": "CT"}, {"background": 0, "a": 1}, None, ".nii.gz", "SimpleITKIO", "mm", "2"
    ),
    SiteFingerprint: summarise_cases("bern", [CASE] * 5),
    PrepareReport: PrepareReport("bern", HASH, {"2d": 5}),
    FullValidation: FullValidation("bern", 2, {"Dice": 0.5}, {"1": {"Dice": [0.5, 2]}}),
    PersonalReport: PersonalReport("bern", 9, "Dice", 0.5, 0.75, 0.25),
    SiteScore: SiteScore("bern", [VALIDATION] * 2),
    StudyReceipt: StudyReceipt("bern"),
    ChoiceOffer: ChoiceOffer("bern", 6),
    EvaluationOffer: EvaluationOffer("bern", 6, 5, "patient", {"torch": "2"}, "cpu"),
    WeightsReceipt: WeightsReceipt("bern", HASH),
    SiteEvaluation: SiteEvaluation("bern", 6, 5, "patient", [MEASURED] * 2, MEASURED, []),
}
QUESTIONS: dict[type, Any] = {
    TrainTask: TrainTask(1, 0.01, 1, 5, 0.0, 60.0, "run"),
    Proposal: Proposal(
        "run",
        "Dataset501_A",
        "2d",
        0,
        {"2d": [0]},
        "nnUNetTrainer",
        "nnUNetPlans",
        HASH,
        1,
        asdict(FederationSettings()),
        {"nnunetv2": "2.8.1"},
    ),
    StudyTerms: StudyTerms(
        *("abc", asdict(FederationSettings(rounds=9)), {"momentum": [0.5, 0.9]}, 27, 63, 3, 3, 20),
        *(60, 1.5, 2.5),
    ),
    StudyEnd: StudyEnd("abc", [0, 3], False),
    PlanProposal: PlanProposal("Dataset501_A", {"planner": "P"}, ["2d"], 5, False, False),
    FingerprintTask: FingerprintTask(100, None, False),
    PrepareTask: PrepareTask({"plans_name": "P"}, HASH, {}, {}, ["2d"], False, True),
    EvaluationProposal: EvaluationProposal([MODEL] * 2, "Tr", ["Dice", "HD95"], 5, [0.25, 0.5]),
    ChoiceProposal: ChoiceProposal(
        *("Dataset501_A", "T", "P", HASH, {"2d": [0]}, True, 5, {"2d": ["abc"]})
    ),
    ScoreTask: ScoreTask(HASH, ["2d"], [[1, 2], [1]]),
    WeightsTask: WeightsTask(HASH, 1, 0),
    MeasureTask: MeasureTask(HASH),
}

HOSTILE: list[Any] = [
    *(10**400, -(10**400), 1e308, -1e308, 1e30, 10**12, -1, -5, 0, 77, 1.5, 2**63),
    *(float("nan"), float("inf"), None, True, [], {}, "", "x" * 10**6, "[/x]", "<script>", "=1+1"),
    *("\x1b[2J", "a\nb", "\u202e", "../../etc/passwd", "/dev/zero", "http://x", [[]], [1] * 20_000),
    {"a": {"b": {"c": 1}}},
]
DEEP = "[" * 100_000 + "]" * 100_000


def mutated_json(text: str, chance: random.Random) -> str:
    """Replace, drop or add a value anywhere in it; or spoil the text."""
    how = chance.randrange(8)
    if how == 0:
        cut = chance.randrange(len(text))
        return text[:cut] + chance.choice(["", "\x00", "}", '"', DEEP]) + text[cut + 1 :]
    content = json.loads(text)
    place: Any = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = chance.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and chance.random() < 0.7:
            place = place[key]
            continue
        if how == 1:
            del place[key]
        elif how == 2 and isinstance(place, dict):
            place[chance.choice(["colour", "__class__", "", key + "x"])] = chance.choice(HOSTILE)
        elif how == 3 and isinstance(place, list):
            place.append(chance.choice(HOSTILE))
        else:
            place[key] = chance.choice(HOSTILE)
        break
    return json.dumps(content)


def mutated_array(vector: np.ndarray, chance: random.Random) -> ArrayRecord:
    values = vector.copy()
    values[chance.randrange(values.size)] = chance.choice([np.nan, np.inf, 1e30, -3e38, 0.5])
    data = bytearray(Array(values).data)
    headers = [b"(" * 60, b"[" * 60, b"{'descr': '|O'}", b"\x00", b"{'descr': '<f4', 'shape': (9"]
    spoil = chance.randrange(6)
    if spoil == 0:
        data[chance.randrange(128)] = chance.randrange(256)
    elif spoil == 1:
        header = chance.choice(headers)
        data[10 : 10 + len(header)] = header
    elif spoil == 2:
        data = data[: chance.randrange(len(data))]
    elif spoil == 3:
        data += bytes(chance.randrange(1000))
    elif spoil == 4:
        return ArrayRecord({str(i): Array(vector) for i in range(chance.randrange(4))})
    return ArrayRecord({"weights": Array("float32", (50,), "numpy.ndarray", bytes(data))})


def mutated(content: RecordDict, chance: random.Random) -> RecordDict:
    text = content.config_records[CONFIG]["payload"]
    assert isinstance(text, str)
    spoiled = RecordDict(dict(content))
    how = chance.randrange(10)
    if how < 6:
        spoiled[CONFIG] = pack_payload(mutated_json(text, chance))
    elif how < 8 and ARRAYS in content:
        spoiled[ARRAYS] = mutated_array(SENT, chance)
    elif how == 8:
        spoiled[CONFIG] = ConfigRecord({"payload": text, "format": chance.choice([0, 1, 3, 10**9])})
    else:
        spoiled[chance.choice(["extra", ARRAYS, CONFIG])] = chance.choice(
            [MetricRecord({"a": 1.0}), ConfigRecord({"payload": b"x"}), ConfigRecord()]
        )
    return spoiled


def parts_of(content: RecordDict) -> tuple[Any, dict[str, bytes]]:
    """Take a message apart as Flower sends it."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 7
    message = Message(content, 1, "train")
    objects = get_all_nested_objects(message)
    return get_object_tree(message), {name: part.deflate() for name, part in objects.items()}


def with_spoiled_parts(content: RecordDict, chance: random.Random) -> RecordDict:
    """Send a message in parts of which one is spoiled, under the name its bytes then have."""
    tree, parts = parts_of(content)
    name = chance.choice(list(parts))
    part = bytearray(parts[name])
    for _ in range(chance.randrange(1, 4)):
        part[chance.randrange(len(part))] = chance.randrange(256)
    if name == tree.object_id:
        tree.object_id = get_object_id(bytes(part))
    parts[tree.object_id if name not in parts else name] = bytes(part)
    return put_together(tree, parts).content


def only_a_refusal(read: Callable[[RecordDict], object], content: RecordDict) -> object:
    """Read; a ``SiteError`` of one short harmless line is all that may come of it but a result."""
    try:
        return read(content)
    except SiteError as error:
        text = str(error)
        assert len(text) < 700
        assert text.isprintable()
        return None


def read_report(content: RecordDict) -> object:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 7
    question = Message(RecordDict(), 7, "train")
    form = ReplyFormat(SENT, "float32", 2, by_cases=True)
    reply = form.read(Message(content, reply_to=question), DESCRIBED)
    report, weights = reply.report, reply.vector
    assert np.isfinite(weights).all()
    assert weights.shape == SENT.shape
    assert (report.site, report.training_cases) == ("bern", 5)
    counts = [*report.validation.tp, *report.validation.fp, *report.validation.fn]
    assert all(0 <= count <= 1e18 for count in counts)
    assert report.train_loss is not None  # DESCRIBED is without differential privacy
    assert -1e12 <= report.train_loss <= 1e12
    return report


def read_as(kind: type, reader: str) -> Callable[[RecordDict], object]:
    return lambda content: kind.from_json(unpack_payload(content, reader))  # type: ignore[attr-defined]


def fuzz(seeds: dict[type, Any], reader: str, seed: int) -> list[bool]:
    """Read a batch of mutated messages; return of each whether it was legal still."""
    chance = random.Random(seed)  # noqa: S311
    return [read_mutated(kind, seeds[kind], reader, chance) for kind in list(seeds) * BATCH]


def read_mutated(kind: type, seed: Any, reader: str, chance: random.Random) -> bool:
    content = RecordDict({CONFIG: pack_payload(seed.to_json())})
    read = read_as(kind, reader)
    if kind in (TrainReport, TrainTask):
        content[ARRAYS] = pack_weights(SENT)
        read = read_report if kind is TrainReport else read_task
    if chance.random() < 0.25:
        return (
            only_a_refusal(lambda whole: read(with_spoiled_parts(whole, chance)), content)
            is not None
        )
    return only_a_refusal(read, mutated(content, chance)) is not None


def read_task(content: RecordDict) -> object:
    task = TrainTask.from_json(unpack_payload(content, "site"))
    unpack_weights(content)
    return task


BOTH_ENDS = pytest.mark.parametrize(
    ("seeds", "reader"), [(ANSWERS, "server"), (QUESTIONS, "site")], ids=["server", "site"]
)


@BOTH_ENDS
def test_no_mutated_message_does_more_than_be_refused(seeds: dict[type, Any], reader: str) -> None:
    legal: list[bool] = []

    @settings(max_examples=-(-TRIALS // (BATCH * len(seeds))), deadline=None, derandomize=True)
    @given(st.integers(0, 2**32 - 1))
    def trial(seed: int) -> None:
        legal.extend(fuzz(seeds, reader, seed))

    trial()

    assert len(legal) >= TRIALS
    assert 10 < sum(legal) < TRIALS / 2  # some mutations leave a message legal


@BOTH_ENDS
def test_no_message_takes_more_memory_than_twice_the_largest_legal_one(
    seeds: dict[type, Any], reader: str
) -> None:
    tracemalloc.start()
    for seed in range(8):
        fuzz(seeds, reader, seed)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 2 * 16 * 2**20


# The attacks of which each ended a federation

NESTED = '{"site": ' + DEEP + "}"


def report(**changes: Any) -> str:
    return json.dumps(asdict(REPORT) | changes)


def counts(**changes: Any) -> dict[str, Any]:
    return asdict(VALIDATION) | changes


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (report(train_loss=10**400), "train_loss: Input should be a finite number"),
        (report(train_loss=1e300), "train_loss: Input should be less than or equal"),
        (report(seconds=10**400), "seconds"),
        (report(seconds=-1), "seconds"),
        (report(validation=counts(tp=[10**400, 1])), r"validation.tp.0"),
        (report(validation=counts(tp=[-1, 1])), r"validation.tp.0: Input should be greater"),
        (report(validation=counts(tp=[1, 2, 3])), "of different lengths"),
        (report(validation=counts(tp=[1], fp=[1], fn=[1])), "of 1 classes, there are 2"),
        (report(validation=counts(iterations=-1)), "iterations"),
        (report(validation=5), "validation"),
        (report(training_cases=10**12), "training_cases"),
        (report(training_cases=6), "trained on 6 cases, but described 5"),
        (report(site="oslo"), "answered as oslo"),
        (report(site="\x1b[2J"), "site"),
        (report(completed=0), "completed"),
        (NESTED, "recursion limit"),
        (report(site="x" * 2**20), "characters are too many"),
        ("", "not a valid TrainReport"),
    ],
)
def test_a_report_that_ended_a_federation_is_refused(text: str, reason: str) -> None:
    content = RecordDict({CONFIG: pack_payload(text), ARRAYS: pack_weights(SENT)})
    with pytest.raises(SiteError, match=reason):
        read_report(content)


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"(", b""),
        (b"[" * 5000, b""),
        (
            b"{'descr': '|O', 'fortran_order': False, 'shape': (50,), }",
            b"cos\nsystem\n(S'true'\ntR.",
        ),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000,), }", b"0000"),
        (b"{'descr': '<f4', 'fortran_order': True, 'shape': (50,), }", b"0" * 200),
        (b"{'descr': __import__('os').system('true'), 'shape': (50,), }", b""),
    ],
)
def test_the_header_of_an_array_is_not_evaluated(header: bytes, data: bytes) -> None:
    start = b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little")
    array = Array("float32", (50,), "numpy.ndarray", start + header + b"\n" + data)
    content = RecordDict({ARRAYS: ArrayRecord({"weights": array})})
    with pytest.raises(SiteError, match="its weights"):
        unpack_weights(content)


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        (SiteDescription, {"validation_cases": -5}, "validation_cases"),
        (SiteDescription, {"training_cases": 0}, "training_cases"),
        (SiteDescription, {"training_cases": 10**8}, "training_cases"),
        (SiteDescription, {"free_gb": 1e300}, "free_gb"),
        (SiteSurvey, {"cases": 10**8}, "cases"),
        (FullValidation, {"foreground_mean": {"Dice": 77}}, r"Dice 77 is not in \[0, 1\]"),
        (FullValidation, {"foreground_mean": {"Dice": -0.1}}, "Dice"),
        (FullValidation, {"mean": {"1": {"Dice": [0.5, -2]}}}, "at most all cases"),
        (FullValidation, {"mean": {"1": {"Dice": [0.5, 3]}}}, "at most all cases"),
        (FullValidation, {"mean": {"1": {"Dice": [12.875, 2]}}}, "Dice"),
        (FullValidation, {"cases": -1}, "cases"),
        (PersonalReport, {"after": 77}, r"Dice 77 is not in \[0, 1\]"),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    kind: type, changes: dict[str, Any], reason: str
) -> None:
    text = json.dumps(asdict(ANSWERS[kind]) | changes)
    with pytest.raises(SiteError, match=reason):
        kind.from_json(text)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "changes",
    [
        {"cases": 10**8},
        {"cases": True},
        {"axes": [[[1.0, 10, 10**8]]] * 3},
        {"axes": [[[1e300, 10, 5]]] * 3},
        {"axes": [[[1.0, 10**13, 5]]] * 3},
        {"channels": []},
        {"site": "\x1b"},
        {"relative_sizes": [[0.5, 4]]},
    ],
)
def test_a_fingerprint_that_claims_too_much_is_refused(changes: dict[str, Any]) -> None:
    raw = json.loads(ANSWERS[SiteFingerprint].to_json())
    with pytest.raises(SiteError, match="not a valid SiteFingerprint"):
        SiteFingerprint.from_json(json.dumps(raw | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 2**62, "counts": [2**62]},
        {"min": -1e300},
        {"exponent": 10**6},
        {"sum": 10**400},
        {"first": [10**30]},
    ],
)
def test_a_channel_that_overflows_is_refused(changes: dict[str, Any]) -> None:
    raw = json.loads(ANSWERS[SiteFingerprint].to_json())
    raw["channels"][0] |= changes
    with pytest.raises(SiteError, match="not a valid SiteFingerprint"):
        SiteFingerprint.from_json(json.dumps(raw))


@pytest.mark.parametrize(
    ("found", "reader", "text"),
    [
        (1, "server", "knows 7: its sender is of an older nnunetv2-federated"),
        (8, "server", "the server knows 7: upgrade nnunetv2-federated of the server"),
        (8, "site", "the site knows 7: upgrade nnunetv2-federated of the site"),
        ("6", "site", "format is no number"),
    ],
)
def test_another_format_says_which_side_to_upgrade(found: object, reader: str, text: str) -> None:
    content = RecordDict({CONFIG: ConfigRecord({"payload": "{}", "format": found})})
    with pytest.raises(SiteError, match=text):
        unpack_payload(content, reader)
    if found == 1:  # as messages without a number are
        with pytest.raises(SiteError, match=text):
            unpack_payload(RecordDict({CONFIG: ConfigRecord({"payload": "{}"})}), reader)


TERMS = PrivacyTerms(
    "patient", 5, 0.5, 1.3, 1.0, 60, 0.1, 7.9, 17.0, 7.9, None, "dp-accounting 0.6.0", "withhold"
)
NOTHING = Validation(0, 0.0, [0.0, 0.0], [0.0, 0.0], [0.0, 0.0])


@pytest.mark.parametrize(
    ("terms", "changes", "reason"),
    [
        (TERMS, {}, "sent a training loss, which its differential privacy does not allow"),
        (TERMS, {"train_loss": None}, "seconds 1.5 are more exact than tens"),
        (TERMS, {"train_loss": None, "seconds": 20}, "told of validation cases, which"),
        (
            TERMS,
            {"train_loss": None, "seconds": 20, "validation": asdict(NOTHING)},
            "told of validation cases, which",
        ),
        (None, {"train_loss": None, "seconds": 20}, "sent no training loss, but described no"),
        (
            TERMS,
            {
                "train_loss": None,
                "seconds": 20,
                "validation": asdict(NOTHING),
                "received": None,
            },
            None,
        ),
        (replace(TERMS, told_of_validation="clear"), {"train_loss": None, "seconds": 20}, None),
    ],
)
def test_a_private_report_tells_what_was_promised(
    terms: PrivacyTerms | None, changes: dict[str, Any], reason: str | None
) -> None:
    content = RecordDict({CONFIG: pack_payload(report(**changes)), ARRAYS: pack_weights(SENT)})
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 7
    answer = Message(content, reply_to=Message(RecordDict(), 7, "train"))
    form = ReplyFormat(SENT, "float32", 2, by_cases=True)
    described = replace(DESCRIBED, privacy=terms)
    if reason is None:
        assert form.read(answer, described).report.private
    else:
        with pytest.raises(SiteError, match=reason):
            form.read(answer, described)
