"""The privacy ledger: what is spent stays spent, whatever is done to its process or its files."""

from __future__ import annotations

import json
import math
import os
import signal
import stat
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nnunetv2_federated.federation import privacy_ledger
from nnunetv2_federated.federation.errors import CheckpointError, SettingsError, SiteError
from nnunetv2_federated.federation.mechanism import Mechanism
from nnunetv2_federated.federation.privacy_budget import (
    check_budget,
    largest,
    rows_by_patient,
    show_epsilon,
)
from nnunetv2_federated.federation.privacy_ledger import PrivacyLedger
from nnunetv2_federated.federation.privacy_rows import Row
from nnunetv2_federated.nnunet.privacy.accounting import epsilon_of

DATASET = "Dataset951_Private"
ANNA, BEN, CLEO = (frozenset([name]) for name in ("Anna", "Ben", "Cleo"))


def row(number: int = 0, patients: frozenset[str] = ANNA | BEN, **changes: object) -> Row:
    usual = Row("run1", number, "0", "", Mechanism(0.1, 2.0, 10), patients, f"digest {number}")
    return replace(usual, **changes)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "work" / "privacy.json"


@pytest.fixture
def ledger(path: Path) -> PrivacyLedger:
    """A ledger of three rows."""
    ledger = PrivacyLedger(path, DATASET)
    for number in range(3):
        assert ledger.charge(row(number))
    return ledger


def rounds(path: Path) -> list[int]:
    return [paid.round for paid in PrivacyLedger(path, DATASET).rows()]


# Charging


@pytest.mark.usefixtures("ledger")
def test_a_row_is_there_for_the_next_process_and_for_this_user_only(path: Path) -> None:
    found = PrivacyLedger(path, DATASET).rows()
    assert [replace(paid, date="") for paid in found] == [row(0), row(1), row(2)]
    assert all(paid.date.endswith("+00:00") for paid in found)
    for file in (path, path.with_name("privacy.head.json")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert json.loads(path.read_text())["format"] == 1


def test_looking_at_an_empty_ledger_makes_none(path: Path) -> None:
    assert PrivacyLedger(path, DATASET).rows() == ()
    assert not path.parent.exists()


def test_the_same_question_is_paid_for_once_and_any_other_again(
    ledger: PrivacyLedger, path: Path
) -> None:
    assert not ledger.charge(row(1))
    assert not ledger.charge(row(1), check=pytest.fail)  # paid: there is nothing to allow
    for other in (
        row(1, digest="another question"),
        row(1, run="run2"),
        row(1, fold="1"),
        row(1, arm="tuned: dp_clip=2"),
        row(1, mechanism=Mechanism(0.1, 2.0, 11)),
        row(1, patients=ANNA | CLEO),
    ):
        assert ledger.charge(other)
    assert len(PrivacyLedger(path, DATASET).rows()) == 9


def test_a_row_that_is_not_allowed_is_not_added(ledger: PrivacyLedger, path: Path) -> None:
    seen = []

    def refuse(rows: Sequence[Row]) -> None:
        seen.append(len(rows))
        raise SiteError("privacy budget spent")

    before = path.read_bytes()
    with pytest.raises(SiteError, match="privacy budget spent"):
        ledger.charge(row(3), check=refuse)
    assert seen == [3]
    assert path.read_bytes() == before


@pytest.mark.usefixtures("ledger")
def test_ledgers_of_two_datasets_know_nothing_of_each_other(path: Path) -> None:
    other = PrivacyLedger(path.with_name("other.json"), "Dataset952_Other")
    assert other.charge(row(0))
    assert len(other.rows()) == 1
    with pytest.raises(CheckpointError, match=r"is of Dataset951_Private, not of Dataset952"):
        PrivacyLedger(path, "Dataset952_Other").charge(row(0))


# Kills and power cuts


def charging_child(work: Callable[[], None]) -> int:
    """Fork a process that works, and ends with status 0 if it was allowed to."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001  # a forked test must not go on
            os._exit(3)
        os._exit(0)
    return child


def kill_at(step: int, path: Path) -> bool:
    """Charge in a process that is killed before its ``step``-th call of the system."""

    def work() -> None:
        left = step

        def counted(name: str) -> None:
            call = getattr(os, name)

            def wrapped(*args: object, **more: object) -> object:
                nonlocal left
                left -= 1
                if left == 0:
                    os._exit(1)
                return call(*args, **more)

            setattr(os, name, wrapped)

        for name in ("open", "fsync", "replace", "rename", "close", "unlink", "chmod", "mkdir"):
            counted(name)
        PrivacyLedger(path, DATASET).charge(row(7))

    status = os.waitstatus_to_exitcode(os.waitpid(charging_child(work), 0)[1])
    assert status in (0, 1)
    return status == 0


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize("started", [False, True], ids=["first row", "fourth row"])
def test_a_kill_at_any_step_leaves_a_ledger_that_goes_on(path: Path, started: bool) -> None:
    if not started:
        path = path.with_name("new.json")
    head, before = path.with_name(f"{path.stem}.head.json"), rounds(path)
    kept = {file: file.read_bytes() for file in (path, head) if file.exists()}
    outcomes = set()
    for step in range(1, 60):
        done = kill_at(step, path)
        after = rounds(path)
        outcomes.add(after == before)
        assert after in (before, [*before, 7])
        assert PrivacyLedger(path, DATASET).charge(row(7)) == (after == before)
        assert PrivacyLedger(path, DATASET).charge(row(8))
        assert rounds(path) == [*before, 7, 8]
        for file in (path, head):
            file.unlink()
            if file in kept:
                file.write_bytes(kept[file])
        if done:
            break
    assert done
    assert step > 10
    assert outcomes == {True, False}


def test_what_a_process_was_told_is_spent_survives_kill_9(path: Path) -> None:
    told = 0
    for attempt in range(12):
        reading, writing = os.pipe()

        def work(attempt: int = attempt, writing: int = writing) -> None:
            for number in range(10_000):
                PrivacyLedger(path, DATASET).charge(row(number, run=f"run{attempt}"))
                os.write(writing, b"x")  # the answer leaves

        child = charging_child(work)
        os.close(writing)
        told += len(os.read(reading, 1))
        while attempt % 3 and told % 3:
            told += len(os.read(reading, 1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while rest := os.read(reading, 1000):
            told += len(rest)
        os.close(reading)
        paid = len(PrivacyLedger(path, DATASET).rows())
        assert told <= paid <= told + attempt + 1  # each kill may hit between ledger and answer
    assert told >= 12


def test_processes_take_turns(path: Path) -> None:
    """Four of them want ten rows each, of which only 25 are allowed."""

    def allow(rows: Sequence[Row]) -> None:
        if len(rows) >= 25:
            raise SiteError("privacy budget spent")

    def work(process: int) -> None:
        for number in range(10):
            try:
                PrivacyLedger(path, DATASET).charge(row(number, run=f"run{process}"), allow)
            except SiteError:
                continue

    children = [charging_child(lambda process=process: work(process)) for process in range(4)]
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(PrivacyLedger(path, DATASET).rows()) == 25


def test_a_ledger_that_begins_while_it_is_read_is_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = privacy_ledger.read_state

    def read_slowly(file: Path, version: int, remedy: str) -> dict[str, object] | None:
        found = read(file, version, remedy)
        if found is None and file.name == "privacy.head.json":
            monkeypatch.setattr(privacy_ledger, "read_state", read)
            PrivacyLedger(path, DATASET).charge(row(0))  # another process
        return found

    monkeypatch.setattr(privacy_ledger, "read_state", read_slowly)
    assert rounds(path) == [0]


def test_a_full_disk_leaves_the_ledger_as_it_was(
    ledger: PrivacyLedger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            ledger.charge(row(3))
    assert rounds(path) == [0, 1, 2]
    assert ledger.charge(row(3))


# What is done to the files


def test_a_changed_byte_is_noticed_anywhere(ledger: PrivacyLedger, path: Path) -> None:
    for file in (path, path.with_name("privacy.head.json")):
        content = file.read_bytes()
        for place in range(0, len(content), 5):
            changed = bytearray(content)
            changed[place] ^= 1
            file.write_bytes(changed)
            with pytest.raises(CheckpointError):
                ledger.rows()
        file.write_bytes(content)
    assert len(ledger.rows()) == 3


def test_half_a_file_is_refused_in_a_line(ledger: PrivacyLedger, path: Path) -> None:
    content = path.read_bytes()
    for length in range(0, len(content), 20):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError) as refused:
            ledger.charge(row(9))
        assert "site's engineer" in str(refused.value)
        assert "\n" not in str(refused.value)
        assert path.read_bytes() == content[:length]


def edited(path: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["rows"].pop(),
        lambda content: content["rows"].pop(0),
        lambda content: content["rows"].reverse(),
        lambda content: content["rows"].clear(),
        lambda content: content["rows"][1].update(steps=1),
        lambda content: content["rows"][1].update(steps=-10),
        lambda content: content["rows"][1].update(noise_multiplier=200.0),
        lambda content: content["rows"][2].update(patients=""),
        lambda content: content["patients"].update({next(iter(content["patients"])): ["Anna"]}),
        lambda content: content.update(sha256="0" * 64),
        lambda content: content.update(rows="none"),
        lambda content: content.pop("dataset"),
    ],
)
def test_an_edited_ledger_is_refused(
    ledger: PrivacyLedger, path: Path, change: Callable[[dict], None]
) -> None:
    edited(path, change)
    for use in (ledger.rows, lambda: ledger.charge(row(9))):
        with pytest.raises(CheckpointError, match=r"is damaged or was changed: nothing is trained"):
            use()


def test_a_ledger_that_is_gone_or_older_than_its_head_is_refused(
    ledger: PrivacyLedger, path: Path
) -> None:
    older = path.read_bytes()
    ledger.charge(row(3))
    path.write_bytes(older)
    with pytest.raises(CheckpointError, match=r"knows, which has 4 rows: .* is an older one"):
        ledger.charge(row(4))
    path.unlink()
    with pytest.raises(CheckpointError, match=r"is gone: privacy.head.json knows 4 rows"):
        ledger.rows()


def test_another_ledger_with_as_many_rows_is_refused(ledger: PrivacyLedger, path: Path) -> None:
    other = PrivacyLedger(path.with_name("other.json"), DATASET)
    for number in range(3):
        other.charge(row(number, mechanism=Mechanism(0.1, 2.0, 1)))
    path.with_name("other.json").replace(path)
    with pytest.raises(CheckpointError, match="is not the one that"):
        ledger.rows()


def test_a_ledger_without_its_head_is_refused(ledger: PrivacyLedger, path: Path) -> None:
    path.with_name("privacy.head.json").unlink()
    with pytest.raises(CheckpointError, match=r"has lost privacy.head.json"):
        ledger.rows()


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (2, r"format 2, this installation knows 1: upgrade nnunetv2-federated of this install"),
        (0, r"format 0, this installation knows 1: the file is of an older nnunetv2-federated"),
        ("1", "is not a state file of this program"),
    ],
)
def test_another_format_says_which_side_to_upgrade(
    ledger: PrivacyLedger, path: Path, found: object, says: str
) -> None:
    edited(path, lambda content: content.update(format=found))
    with pytest.raises(CheckpointError, match=says):
        ledger.charge(row(9))


# What is spent


def signal_of(mechanisms: Sequence[Mechanism], _delta: float) -> float:
    """A stand-in for an accountant, to be added up in the head."""
    return sum(one.steps * one.probability / one.noise_multiplier for one in mechanisms)


def fold_rows() -> list[Row]:
    """Five folds of a case each: each is in training four times, with 10 x 0.1 / 2 = 0.5."""
    cases = [frozenset([str(number)]) for number in range(5)]
    everybody = frozenset[str]().union(*cases)
    return [row(0, everybody - case, fold=str(fold)) for fold, case in enumerate(cases)]


def test_patients_are_grouped_by_their_rows() -> None:
    first, second, third = row(0, ANNA | BEN), row(1, BEN | CLEO), row(2, ANNA | BEN)
    assert rows_by_patient([first, second, third]) == {
        ANNA: (first, third),
        BEN: (first, second, third),
        CLEO: (second,),
    }
    assert rows_by_patient([]) == {}


def test_folds_are_composed_for_each_patient_alone() -> None:
    assert largest(fold_rows(), 1e-3, signal_of) == 4 * 0.5
    assert largest([*fold_rows(), row(0, ANNA)], 1e-3, signal_of) == 4 * 0.5
    assert largest([*fold_rows(), row(0, frozenset("3"))], 1e-3, signal_of) == 5 * 0.5
    assert largest([], 1e-3, signal_of) == 0


def test_an_accountant_is_asked_for_no_group_that_cannot_be_the_largest() -> None:
    asked = []

    def counting(mechanisms: Sequence[Mechanism], delta: float) -> float:
        asked.append((tuple(mechanisms), delta))
        return 0.0

    other = Mechanism(0.2, 2.0, 10)
    rows = [row(n, ANNA | BEN) for n in range(50)] + [row(n, BEN | CLEO) for n in range(50)]
    largest([*rows, row(0, CLEO, mechanism=other)], 1e-3, counting)
    of_ben, of_cleo = Mechanism(0.1, 2.0, 1000), Mechanism(0.1, 2.0, 500)
    assert sorted(asked, key=str) == sorted([((of_ben,), 1e-3), ((of_cleo, other), 1e-3)], key=str)


def test_two_runs_on_the_same_patients_compose() -> None:
    first = [row(n, mechanism=Mechanism(0.15, 2.0, 20)) for n in range(5)]
    second = [row(n, run="run2", mechanism=Mechanism(0.15, 3.0, 20)) for n in range(5)]
    expected = epsilon_of([Mechanism(0.15, 2.0, 100), Mechanism(0.15, 3.0, 100)], 1e-3)
    assert largest(first + second, 1e-3, epsilon_of) == expected
    assert largest(first, 1e-3, epsilon_of) < expected
    apart = [replace(paid, patients=CLEO) for paid in second]
    assert largest(first + apart, 1e-3, epsilon_of) == largest(first, 1e-3, epsilon_of)


def test_a_budget_allows_what_reaches_it_and_says_what_is_left() -> None:
    rows = [row(n, mechanism=Mechanism(0.1, 0.5, 5)) for n in range(7)]  # 1.0 each
    planned = row(7, mechanism=Mechanism(0.1, 0.5, 5))
    assert check_budget(rows, planned, 1e-3, 8.0, signal_of) == pytest.approx(8.0)
    with pytest.raises(SiteError) as refused:
        check_budget(rows, planned, 1e-3, 7.9, signal_of)
    assert str(refused.value) == (
        "privacy budget spent: 7.0 of 7.9 (epsilon at delta 0.001, of the patient who paid most); "
        "5 more iterations would make it 8.0, 0.9 is left. Fewer rounds or more noise cost less; "
        "the site's engineer sets max_epsilon in site.toml"
    )
    with pytest.raises(SiteError, match=r"spent: 7\.0 of 3\.0 .* make it 8\.0, 0\.0 is left"):
        check_budget(rows, planned, 1e-3, 3.0, signal_of)


def test_a_budget_is_that_of_the_patients_who_are_asked_for() -> None:
    expensive = row(0, ANNA, mechanism=Mechanism(1.0, 0.1, 1))  # 10
    planned = row(1, BEN, mechanism=Mechanism(1.0, 1.0, 1))  # 1
    assert check_budget([expensive], planned, 1e-3, 2.0, signal_of) == 1.0
    assert check_budget([row(0, ANNA | BEN)], planned, 1e-3, 2.0, signal_of) == 1.5
    with pytest.raises(SiteError, match=r"spent: 10\.0 of 2\.0"):
        check_budget([expensive], row(1, ANNA | BEN), 1e-3, 2.0, signal_of)


def test_an_infinite_epsilon_is_never_allowed() -> None:
    without = row(0, mechanism=Mechanism(0.1, 0.0, 1))
    with pytest.raises(SiteError, match=r"spent: 0\.0 of 8\.0 .* would make it infinite"):
        check_budget([], without, 1e-3, 8.0, epsilon_of)


@pytest.mark.parametrize(
    ("epsilon", "text"),
    [
        (7.9, "7.9"),
        (8.0, "8.0"),
        (7.951, "7.96"),
        (7.95, "7.95"),
        (0.0, "0.0"),
        (1e-9, "0.0"),
        (0.0001, "0.01"),
        (12345.678, "12345.68"),
        (2e6, "more than 1000000"),
        (math.inf, "infinite"),
    ],
)
def test_an_epsilon_is_shown_rounded_up(epsilon: float, text: str) -> None:
    assert show_epsilon(epsilon) == text


def test_a_number_that_no_row_has_is_refused_before_it_is_written(path: Path) -> None:
    with pytest.raises(SettingsError, match="steps -1"):
        row(0, mechanism=Mechanism(0.1, 1.0, -1))
    assert not path.exists()
