"""What a site agrees to, answers once and gives at most; without a network or a trainer."""

from __future__ import annotations

import dataclasses
import json
import stat
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunetv2_federated.federation.errors import CheckpointError, SettingsError, SiteError
from nnunetv2_federated.federation.messages import (
    VALIDATION_EPOCH,
    FingerprintTask,
    PrepareTask,
    TrainTask,
)
from nnunetv2_federated.federation.proposals import PlanProposal, Proposal
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.federation.tasks import (
    check_evaluation,
    check_full_validation,
    check_round,
    proximal_mu,
)
from nnunetv2_federated.flower.deployment.signing import Sequence, sign, verify
from nnunetv2_federated.flower.deployment.site.consent import Consent, NotApprovedError
from nnunetv2_federated.flower.deployment.site.guarded_site import GuardedSite
from nnunetv2_federated.flower.deployment.site.ledger import (
    EVALUATION,
    PERSONAL,
    ROUND,
    VALIDATION,
    Ledger,
    Question,
)
from nnunetv2_federated.flower.deployment.site.limits import Limits, Spent
from nnunetv2_federated.flower.deployment.site.local_site import LocalSite
from nnunetv2_federated.flower.deployment.site.proposal_text import describe
from nnunetv2_federated.flower.records import ARRAYS, CONFIG, pack_payload, pack_weights

# What is signed


def question(text: str = "a", node: int = 7, run: int = 1, kind: str = "train") -> Message:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run, 1
    weights = pack_weights(np.ones(3, np.float32))
    content = RecordDict({ARRAYS: weights, CONFIG: ConfigRecord({"payload": text})})
    return Message(content, node, kind)


def test_what_the_coordinator_signed_is_accepted_without_the_signature() -> None:
    key = Ed25519PrivateKey.generate()
    message = question()
    sign(message, key, 5)

    assert verify(message, key.public_key()).sequence == 5

    assert sorted(message.content) == [ARRAYS, CONFIG]


@pytest.mark.parametrize(
    "other",
    [{"text": "b"}, {"node": 8}, {"run": 2}, {"kind": "evaluate"}],
    ids=lambda other: next(iter(other)),
)
def test_a_signature_is_for_one_message(other: dict[str, Any]) -> None:
    """Another payload, site, run or kind of question is not what was signed."""
    key = Ed25519PrivateKey.generate()
    signed, forged = question(), question(**other)
    sign(signed, key)
    forged.content["signature"] = signed.content["signature"]

    with pytest.raises(SiteError, match="not the coordinator's for this message"):
        verify(forged, key.public_key())


def test_other_weights_another_number_another_key_and_no_signature_are_refused() -> None:
    key = Ed25519PrivateKey.generate()
    message = question()
    with pytest.raises(SiteError, match="not signed"):
        verify(message, key.public_key())
    sign(message, key)
    message.content[ARRAYS] = pack_weights(np.zeros(3, np.float32))
    with pytest.raises(SiteError, match="not the coordinator's"):
        verify(message, key.public_key())
    message = question()
    sign(message, key, 5)
    message.content["signature"]["sequence"] = 6
    with pytest.raises(SiteError, match="not the coordinator's"):
        verify(message, key.public_key())
    message = question()
    sign(message, key)
    with pytest.raises(SiteError, match="not the coordinator's"):
        verify(message, Ed25519PrivateKey.generate().public_key())


def test_numbers_grow_whatever_the_clock_does() -> None:
    times = iter([5_000_000, 4_000_000, 4_000_000, 9_000_000])
    numbers = Sequence(lambda: next(times))
    assert [numbers.next() for _ in range(4)] == [5000, 5001, 5002, 9000]


# Which messages are new


def test_a_message_is_answered_once_and_again_only_if_its_answer_did_not_leave(
    tmp_path: Path,
) -> None:
    Ledger(tmp_path).take(10, "a")
    Ledger(tmp_path).take(10, "a")  # killed in between: the message is still in the inbox
    with pytest.raises(SiteError, match="not newer"):
        Ledger(tmp_path).take(10, "b")
    Ledger(tmp_path).answered()

    for sequence, digest in ((10, "a"), (9, "b"), (0, "c"), (-1, "d")):
        with pytest.raises(SiteError, match="not newer than the last one"):
            Ledger(tmp_path).take(sequence, digest)
    Ledger(tmp_path).take(11, "e")


# What a round may be

APPROVED = FederationSettings(rounds=2, local_epochs=3, strategy="fedprox", round_deadline=100)
LRS = [0.01, 0.005358867312681466]
ROUND_1 = TrainTask(1, 0.005358867312681466, 3, 0, 0.01, 80.0)  # 0.01 * (1 - 1/2) ** 0.9


def test_a_round_as_it_was_approved_passes() -> None:
    check_round(ROUND_1, APPROVED, LRS, 50)
    check_round(dataclasses.replace(ROUND_1, validate_received=50), APPROVED, LRS, 50)
    check_round(
        dataclasses.replace(ROUND_1, validate_received=VALIDATION_EPOCH), APPROVED, LRS, None
    )
    check_evaluation(TrainTask(2, 0.0, 0, 50), APPROVED, 50)
    check_full_validation(TrainTask(3, 0.0, 0, 0), APPROVED)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"server_round": 2}, "refused round 3: approved are 2 rounds"),
        ({"lr": 1.0}, "refused lr 1.0: approved is 0.00535"),
        ({"lr": 0.0}, "refused lr 0.0"),
        ({"server_round": 0}, "refused lr 0.00535"),  # of another round
        ({"local_epochs": 4}, "refused local_epochs 4: approved is 3"),
        ({"proximal_mu": 1e6}, "refused proximal_mu 1000000.0: approved is 0.01"),
        ({"proximal_mu": 0.0}, "refused proximal_mu 0.0"),
        ({"seconds": None}, "refused seconds None: approved is 80.0"),
        ({"seconds": 1e9}, "refused seconds"),
        ({"validate_received": 51}, "refused 51 validation iterations: approved are at most 50"),
        ({"validate_received": 10**7}, "refused 10000000 validation iterations"),
    ],
)
def test_a_round_that_was_not_approved_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(SiteError, match=text):
        check_round(dataclasses.replace(ROUND_1, **changes), APPROVED, LRS, 50)


@pytest.mark.parametrize("changes", [{"lr": -0.5}, {"lr": 100.0}, {"lr": float("nan")}])
def test_a_learning_rate_that_is_none_is_no_task(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="lr"):
        dataclasses.replace(ROUND_1, **changes)


def test_evaluations_that_were_not_approved_are_refused() -> None:
    silent = dataclasses.replace(APPROVED, global_validation=False)
    first = dataclasses.replace(ROUND_1, server_round=0, lr=0.01, validate_received=1)
    for task, approved in ((first, APPROVED), (TrainTask(2, 0.0, 0, 1), silent)):
        check = check_round if task is first else check_evaluation
        arguments = (LRS, 50) if task is first else (50,)
        with pytest.raises(SiteError, match="approved are none in this round"):
            check(task, approved, *arguments)
    with pytest.raises(SiteError, match="refused server_round 1: approved is 2"):
        check_evaluation(TrainTask(1, 0.0, 0, 5), APPROVED, 50)
    with pytest.raises(SiteError, match="refused server_round 2: approved is 3"):
        check_full_validation(TrainTask(2, 0.0, 0, 0), APPROVED)


@pytest.mark.parametrize(
    ("strategy", "options", "mu"),
    [("fedavg", {}, 0.0), ("fedprox", {}, 0.01), ("fedprox", {"proximal_mu": 0.5}, 0.5)],
)
def test_only_fedprox_has_a_proximal_term(
    strategy: str, options: dict[str, float], mu: float
) -> None:
    assert proximal_mu(FederationSettings(strategy=strategy, strategy_options=options)) == mu


# What is given


def test_limits_belong_to_the_dataset_and_add_up_over_runs(tmp_path: Path) -> None:
    limits = Limits(max_rounds=3)
    asked = FederationSettings(rounds=2)
    limits.check_federation(asked, Spent(rounds=1), 2, "bern")
    limits.check_federation(asked, Spent(rounds=3), 0, "bern")  # continued, done
    with pytest.raises(SiteError, match="at most 3 rounds with this dataset; 2 are spent"):
        limits.check_federation(asked, Spent(rounds=2), 2, "bern")

    ledger = Ledger(tmp_path)
    for run in ("first", "second"):
        ledger.open_run(run, tmp_path)
        assert ledger.begin(Question(run, ROUND, 0, "q"), "D", limits, "bern") is None
    ledger.spend(["D"], hours=0.5)
    ledger.spend(["D", "study x"], hours=0.25, size=5)
    assert Ledger(tmp_path).spent("D") == Spent(2, 0.75, 0, 5e-9)
    assert ledger.spent("study x") == Spent(0, 0.25, 0, 5e-9)
    assert ledger.spent("E") == Spent()


@pytest.mark.parametrize(
    ("limits", "spent", "is_round", "text"),
    [
        ({"max_rounds": 2}, Spent(rounds=2), True, "has given its 2 rounds"),
        ({"max_evaluations": 1}, Spent(evaluations=1), False, "has given its 1 evaluations"),
        ({"max_hours": 1.5}, Spent(hours=1.5), True, "has given its 1.5 hours"),
        ({"max_hours": 1.5}, Spent(hours=9), False, "has given its 1.5 hours"),
    ],
)
def test_nothing_is_given_beyond_a_limit(
    limits: dict[str, Any], spent: Spent, is_round: bool, text: str
) -> None:
    with pytest.raises(SiteError, match=text):
        Limits(**limits).check_step(spent, "bern", is_round=is_round)
    Limits().check_step(spent, "bern", is_round=is_round)


def test_local_epochs_are_limited() -> None:
    with pytest.raises(SiteError, match="at most 1 local_epochs"):
        Limits(max_local_epochs=1).check_federation(
            FederationSettings(local_epochs=2), Spent(), 0, "bern"
        )


# Everything a malicious server may send

ANSWER = RecordDict(
    {CONFIG: pack_payload("{}"), ARRAYS: pack_weights(np.arange(3, dtype=np.float32))}
)
MESSAGES = st.lists(
    st.tuples(
        st.sampled_from(["join a", "join b", "work", "work", "work", "fail", "kill"]),
        st.integers(0, 5),  # step
        st.sampled_from("xy"),  # the question
    ),
    max_size=40,
)


def work(run: str, step: int, rounds: int, digest: str) -> Question:
    """Steps below ``rounds`` train, the next evaluates, the last is a personal model."""
    if step < rounds:
        return Question(run, ROUND, step, digest)
    kinds = {rounds: EVALUATION, rounds + 1: VALIDATION}
    return Question(run, kinds.get(step, PERSONAL), 0, digest)


@given(MESSAGES, st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_is_sent_no_round_is_trained_twice_and_no_limit_is_exceeded(
    tmp_path_factory: pytest.TempPathFactory,
    messages: list[tuple[str, int, str]],
    rounds: int,
    max_rounds: int,
) -> None:
    """Any order, repetition or omission."""
    folder = tmp_path_factory.mktemp("ledger")
    limits = Limits(max_rounds=max_rounds, max_evaluations=1)
    ledger, run = Ledger(folder), ""
    trained: list[tuple[str, str, int]] = []
    evaluated: list[tuple[str, str, int]] = []
    answers: dict[tuple[str, str, int], str] = {}
    for what, step, digest in messages:
        if what.startswith("join"):
            run = what
            ledger.open_run(run, folder)
            continue
        asked = work(run, step, rounds, digest)
        try:
            kept = ledger.begin(asked, "D", limits, "bern")
        except SiteError:
            continue
        what_for = (run, asked.kind, asked.step)
        if kept is not None:
            assert answers[what_for] == digest  # to the same question, the same answer
            assert kept[ARRAYS] == ANSWER[ARRAYS]
            continue
        if what == "fail":
            continue  # the work was begun; no answer leaves
        if what == "kill":
            ledger = Ledger(folder)
            continue
        assert what_for not in answers
        answers[what_for] = digest
        (trained if asked.is_round else evaluated).append(what_for)
        ledger.finish(asked, ANSWER)
    assert len(set(trained)) == len(trained) <= max_rounds
    assert len(set(evaluated)) == len(evaluated) <= 1
    assert ledger.spent("D").rounds <= max_rounds


def test_a_site_that_is_further_on_goes_back_only_by_its_engineers_word(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    run = "0123456789abcdef"
    ledger.open_run(run, tmp_path / "fold")
    for step in range(3):
        asked = Question(run, ROUND, step, f"q{step}")
        assert ledger.begin(asked, "D", Limits(), "bern") is None
        ledger.finish(asked, ANSWER)

    with pytest.raises(SiteError, match=r"at round 3 already.*--rewind 0123456789abcdef 2"):
        ledger.begin(Question(run, ROUND, 1, "other"), "D", Limits(), "bern")
    with pytest.raises(SiteError, match=r"another question for round 3 came before"):
        ledger.begin(Question(run, ROUND, 2, "other"), "D", Limits(), "bern")
    assert ledger.begin(Question(run, ROUND, 2, "q2"), "D", Limits(), "bern") == ANSWER

    for bad in ("0123", "ffffffffff", "*"):
        with pytest.raises(SettingsError, match="of one run; known are 0123456789ab"):
            ledger.rewind(bad, 1)
    with pytest.raises(SettingsError, match="the site is at round 3"):
        ledger.rewind(run[:12], 3)
    ledger.rewind(run[:12], 1)
    personal = Question(run, PERSONAL, 0, "q")
    assert ledger.begin(personal, "D", Limits(), "bern") is None
    with pytest.raises(SiteError, match=r"refused round 2: the site has made its personal model"):
        ledger.begin(Question(run, ROUND, 1, "other"), "D", Limits(), "bern")
    ledger.rewind(run[:12], 1)

    assert ledger.folder_of(run[:8]) == tmp_path / "fold"
    assert ledger.begin(Question(run, ROUND, 1, "other"), "D", Limits(), "bern") is None
    assert ledger.spent("D").rounds == 4  # what was spent stays spent


def test_a_ledger_of_before_there_were_personal_models_is_read(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.open_run("0123456789", tmp_path / "fold")
    content = json.loads((tmp_path / "ledger.json").read_text())
    del content["runs"]["0123456789"][PERSONAL]
    (tmp_path / "ledger.json").write_text(json.dumps(content))

    assert ledger.begin(Question("0123456789", ROUND, 0, "q"), "D", Limits(), "bern") is None
    asked = Question("0123456789", PERSONAL, 0, "q")
    assert ledger.begin(asked, "D", Limits(), "bern") is None
    ledger.finish(asked, ANSWER)
    assert ledger.begin(asked, "D", Limits(), "bern") == ANSWER


def test_only_the_answer_of_the_present_run_is_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    asked = Question("first", ROUND, 0, "q")
    ledger.open_run("first", tmp_path)
    ledger.begin(asked, "D", Limits(), "bern")
    ledger.finish(asked, ANSWER)
    ledger.open_run("first", tmp_path)
    assert ledger.begin(asked, "D", Limits(), "bern") == ANSWER

    ledger.open_run("second", tmp_path)

    with pytest.raises(SiteError, match="the answer is not kept"):
        ledger.begin(asked, "D", Limits(), "bern")


def test_a_damaged_answer_is_not_sent(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    asked = Question("first", ROUND, 0, "q")
    ledger.open_run("first", tmp_path)
    ledger.begin(asked, "D", Limits(), "bern")
    ledger.finish(asked, ANSWER)
    file = tmp_path / "round.bin"
    file.write_bytes(file.read_bytes()[:-1] + b"x")

    with pytest.raises(CheckpointError, match=r"round.bin is damaged"):
        ledger.begin(asked, "D", Limits(), "bern")


@pytest.mark.parametrize("content", ["", "{", '{"format": 1}', '{"format": 1, "message": {}}'])
def test_a_ledger_that_cannot_be_read_stops_everything(tmp_path: Path, content: str) -> None:
    (tmp_path / "ledger.json").write_text(content)
    for call in (
        lambda: Ledger(tmp_path).take(1, "a"),
        lambda: Ledger(tmp_path).spent("D"),
        lambda: Ledger(tmp_path).open_run("a", tmp_path),
    ):
        with pytest.raises(CheckpointError, match=r"ledger.json .*restore it from a backup"):
            call()
    assert (tmp_path / "ledger.json").read_text() == content


def test_what_a_site_remembers_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    ledger = Ledger(folder)
    asked = Question("first", ROUND, 0, "q")
    ledger.open_run("first", tmp_path)
    ledger.begin(asked, "D", Limits(), "bern")
    ledger.finish(asked, ANSWER)
    Consent("bern", folder).approve("a" * 64, "test")

    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}

    assert modes["ledger.json"] == modes["round.bin"] == modes["approved.json"] == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


# What a site agrees to


def plan_proposal(**changes: Any) -> PlanProposal:
    content: dict[str, Any] = {
        "dataset": "Dataset901_Balls",
        "planner": {"planner": "ExperimentPlanner"},
        "configurations": ["2d"],
        "min_cases": 5,
        "verify_dataset_integrity": False,
        "replace_plans": False,
    }
    return PlanProposal(**content | changes)


def prepare_task(**changes: Any) -> PrepareTask:
    content: dict[str, Any] = {
        "plans": {},
        "plans_hash": "0" * 64,
        "fingerprint": {},
        "declared": {},
        "configurations": ["2d"],
        "replace_plans": False,
        "check_only": True,
    }
    return PrepareTask(**content | changes)


def test_a_site_is_planned_for_as_it_approved_and_not_otherwise(tmp_path: Path) -> None:
    guarded = GuardedSite(LocalSite("bern", "901", tmp_path, "cpu"))
    with pytest.raises(SiteError, match="has not agreed to be planned for"):
        guarded.planning.check_fingerprint(FingerprintTask(100, 5, False), 12)
    with pytest.raises(NotApprovedError, match="has not approved planning"):
        guarded.planning.join(plan_proposal())
    asked = guarded.consent.proposed()
    assert asked == plan_proposal()
    guarded.consent.approve(asked.approval(), "test")
    guarded.planning.join(plan_proposal())
    assert guarded.consent.proposed() is None

    guarded.planning.check_fingerprint(FingerprintTask(10**6, 5, False), 100)
    guarded.planning.check_prepare(prepare_task())
    for task, text in (
        (FingerprintTask(100, None, False), "refused a fingerprint of other bins"),
        (FingerprintTask(100, 5, True), "refused verify_dataset_integrity True"),
        (FingerprintTask(10**6 + 1, 5, False), "nnU-Net takes at most 1000000"),
    ):
        with pytest.raises(SiteError, match=text):
            guarded.planning.check_fingerprint(task, 100)
    with pytest.raises(SiteError, match="refused to preprocess 3d_fullres"):
        guarded.planning.check_prepare(prepare_task(configurations=["2d", "3d_fullres"]))
    with pytest.raises(SiteError, match="refused to replace plans"):
        guarded.planning.check_prepare(prepare_task(replace_plans=True))
    with pytest.raises(NotApprovedError):
        guarded.planning.join(plan_proposal(min_cases=None))

    guarded.consent.withdraw(asked.approval(), "test")
    with pytest.raises(SiteError, match=r"approval of planning .* was withdrawn"):
        guarded.planning.check_prepare(prepare_task())


@pytest.mark.parametrize("samples", [0, -1, 10**8 + 1, 10**10, 10**400, 1.5, True, "1"])
def test_a_number_of_samples_that_is_none_is_refused(samples: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        FingerprintTask(samples, 5, False)  # type: ignore[arg-type]


def proposal(**changes: Any) -> Proposal:
    content: dict[str, Any] = {
        "run_id": "first",
        "dataset": "Dataset901_Balls",
        "configuration": "2d",
        "fold": 0,
        "trainer": "nnUNetTrainerFederated",
        "plans_name": "nnUNetPlans",
        "plans_hash": "0" * 64,
        "site_index": 0,
        "settings": asdict(FederationSettings(rounds=3)),
        "packages": {"nnunetv2": "2.8.1"},
    }
    content |= changes
    own = {content["configuration"]: [content["fold"]]}
    return Proposal(**{"queue": own, **content})


def test_an_approval_is_for_plans_and_settings_not_for_a_start_or_a_place() -> None:
    approved = proposal().approval()

    assert proposal(run_id="second", site_index=2).approval() == approved
    for change in (
        {"plans_hash": "1" * 64},
        {"settings": asdict(FederationSettings(rounds=4))},
        {"trainer": "nnUNetTrainer"},
        {"fold": 1},
        {"packages": {"nnunetv2": "2.8.2"}},
    ):
        assert proposal(**change).approval() != approved


@pytest.mark.parametrize("field", ["dataset", "configuration", "trainer", "plans_name", "run_id"])
@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", "", "a\x00", "a\n"])
def test_a_name_that_leads_elsewhere_is_not_even_looked_at(field: str, name: str) -> None:
    text = json.dumps(asdict(proposal()) | {field: name})
    with pytest.raises(SiteError, match=f"not a valid Proposal: {field}"):
        Proposal.from_json(text)


@pytest.fixture
def consent(tmp_path: Path) -> Consent:
    opened = Consent("bern", tmp_path)
    with pytest.raises(NotApprovedError):
        opened.require(proposal())
    return opened


@pytest.mark.parametrize(
    "digits", ["", "f", "zzz", "z" * 64, "0" * 11, "A" * 12, "0" * 65, "../.."]
)
def test_an_approval_wants_at_least_twelve_digits(consent: Consent, digits: str) -> None:
    with pytest.raises(SettingsError, match=r"--approve .*: give at least 12 digits"):
        consent.complete("--approve", digits)
    with pytest.raises(SettingsError, match="not what was proposed last or approved"):
        consent.complete("--approve", "0" * 12)
    approval = proposal().approval()
    assert consent.complete("--approve", approval[:12]) == approval
    assert consent.complete("--approve", "0" * 64) == "0" * 64


def test_a_withdrawn_approval_is_given_again_only_by_the_engineer(
    consent: Consent, tmp_path: Path
) -> None:
    events: list[str] = []
    consent = Consent("bern", tmp_path, lambda _: True, lambda event, **_: events.append(event))
    consent.require(proposal())  # asked, and agreed to
    consent.require_still(proposal())
    consent.withdraw(proposal().approval(), "test")

    with pytest.raises(SiteError, match="was withdrawn"):
        consent.require_still(proposal())
    with pytest.raises(NotApprovedError, match="its approval was withdrawn"):
        consent.require(proposal())
    consent.approve(proposal().approval(), "test")
    consent.require(proposal())

    assert events == ["approved", "withdrawn", "approved"]


@pytest.mark.parametrize("name", ["approved.json", "proposed.json"])
@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1, "approved": 5}'])
def test_broken_approvals_approve_nothing(
    consent: Consent, tmp_path: Path, name: str, content: str
) -> None:
    consent.approve(proposal().approval(), "test")
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=rf"{name}"):
        consent.require(proposal(fold=1))


# In words

PLANS = {
    "configurations": {
        "2d_small": {"inherits_from": "2d", "batch_size": 4},
        "2d": {
            "patch_size": [64, 48],
            "batch_size": 12,
            "spacing": [1.0, 0.5],
            "normalization_schemes": ["CTNormalization"],
            "architecture": {"network_class_name": "a.b.PlainConvUNet"},
        },
        "loop": {"inherits_from": "loop"},
    }
}


def test_an_engineer_reads_what_plans_and_settings_say() -> None:
    asked = proposal(configuration="2d_small")
    text = "\n".join(describe(asked, PLANS, ["nnunetv2: 2.8.0 here, 2.8.1 at the coordinator"]))

    for words in (
        "training of 2d_small, fold 0, with nnUNetTrainerFederated",
        "3 rounds of 1 local epoch",
        "by fedavg",
        "network a.b.PlainConvUNet, patch 64x48, batch 4, spacing 1x0.5",
        "CTNormalization",
        "package nnunetv2: 2.8.0 here, 2.8.1 at the coordinator",
        asked.approval(),
    ):
        assert words in text
    assert "no such plans (yet)" in "\n".join(describe(asked, None, []))
    assert describe(proposal(configuration="loop"), PLANS, [])  # ends
    evil = plan_proposal(planner={"planner": "\x1b[2J\nfine"}, replace_plans=True)
    lines = describe(evil, None, [])
    assert not any("\x1b" in line or "\n" in line for line in lines)
    assert "merged until each bin holds at least 5 cases" in "\n".join(lines)
    assert "and replaces plans of the same name" in "\n".join(lines)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "at least 5 validation cases it tells their number, the mean Dice"),
        ({"dp_noise": 1.0, "dp_validation": "clear"}, "it tells only that it is done"),
    ],
)
def test_a_personal_model_is_approved_in_words(changes: dict[str, Any], told: str) -> None:
    settings = FederationSettings(personal="finetune", personal_iterations=70, **changes)
    text = "\n".join(describe(proposal(settings=asdict(settings)), None, []))
    assert "this site fine-tunes the model for 70 iterations at the initial learning rate" in text
    assert "personal model, which never leaves it" in text
    assert told in text
    without = asdict(FederationSettings(**changes))
    assert "personal" not in "\n".join(describe(proposal(settings=without), None, []))
