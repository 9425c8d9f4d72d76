"""The audit log: whatever is done to it is noticed, and a kill or a power cut costs nothing."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_federated.cli import audit as command
from nnunetv2_federated.federation import chain
from nnunetv2_federated.federation.audit import EVENTS, AuditLog
from nnunetv2_federated.federation.chain import START, Report, check, head_path, read
from nnunetv2_federated.federation.errors import CheckpointError

KEY = "SHA256:9f86d081884c7d65"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log of five lines."""
    path = tmp_path / "work" / "audit.jsonl"
    log = AuditLog(path)
    log.record("started", dataset="Dataset601_CXRLung")
    log.record("approved", what="federation", sha256="ab" * 32)
    for number in range(2):
        log.record("asked", message="train", run=2**63 + 5, round=number, by=KEY)
    log.record("left", message="train", bytes=132_000_000, sha256="cd" * 32)
    return path


def records(path: Path) -> list[str]:
    return [line.event for line in read(path)]


def test_a_line_says_what_it_follows_and_only_this_user_reads_it(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    first, second = json.loads(lines[0]), json.loads(lines[1])

    assert first["format"] == 1
    assert (first["number"], first["event"], first["previous"]) == (1, "started", "0" * 64)
    assert first["dataset"] == "Dataset601_CXRLung"
    assert second["previous"] == hashlib.sha256(lines[0]).hexdigest()
    assert "format" not in second
    now = datetime.now(UTC)
    assert 0 <= (now - datetime.fromisoformat(second["time"])).total_seconds() < 600
    assert json.loads(lines[2])["run"] == 2**63 + 5  # Flower's runs have 64 bits
    assert check(path) == Report(5, hashlib.sha256(lines[4]).hexdigest())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(head_path(path).stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_new_process_goes_on_where_the_last_one_stopped(path: Path) -> None:
    path.chmod(0o644)  # as a copy may leave it
    AuditLog(path).record("stopped")
    assert check(path).lines == 6
    assert records(path)[-2:] == ["left", "stopped"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_without_a_log_nothing_is_wrong_and_looking_makes_none(tmp_path: Path) -> None:
    path = tmp_path / "work" / "audit.jsonl"
    AuditLog(path)
    assert check(path) == Report(0, START)
    assert not path.parent.exists()


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("two\nlines\x1b[2J \u202ex \ud800", "two lines [2J x"),
        ("x" * 10**6, "x" * 299 + "…"),
        (10**5000, "a number of more than 64 bits"),
        (float("nan"), "nan"),
        (0.1, 0.1),
        (True, True),
        (None, None),
    ],
    ids=["text", "much text", "large number", "no number", "number", "bool", "nothing"],
)
def test_whatever_a_message_holds_can_be_recorded(
    path: Path, value: str | float | None, stored: object
) -> None:
    AuditLog(path).record("refused", reason=value)
    assert list(read(path))[-1].fields == {"reason": stored}
    assert check(path).lines == 6


@pytest.mark.parametrize(
    ("event", "fields", "error"),
    [
        ("approve", {}, ValueError),
        ("left", {"number": 5}, ValueError),
        ("left", {"not a name": 5}, ValueError),
        ("left", {f"f{i}": i for i in range(21)}, ValueError),
        ("left", {"sha256": b"ab"}, TypeError),
        ("left", {"parts": ["a"]}, TypeError),
    ],
)
def test_what_is_no_entry_is_refused_and_nothing_written(
    path: Path, event: str, fields: dict, error: type[Exception]
) -> None:
    before = path.read_bytes()
    with pytest.raises(error):
        AuditLog(path).record(event, **fields)
    assert path.read_bytes() == before


def test_the_longest_entry_fits_into_a_line(path: Path) -> None:
    AuditLog(path).record("left", **{"f" * 38 + f"{i:02d}": "\U0001f600" * 300 for i in range(20)})
    assert check(path).lines == 6


# what is done to the lines, and the first line that can then not be trusted
TAMPERED: dict[str, tuple[Callable[[list[bytes]], list[bytes]], int]] = {
    "the first removed": (lambda x: x[1:], 1),
    "one removed": (lambda x: x[:2] + x[3:], 3),
    "the last removed": (lambda x: x[:4], 5),
    "all removed": (lambda x: x[:0], 1),
    "half of the last removed": (lambda x: [*x[:4], x[4][:40]], 5),
    "its end removed": (lambda x: [*x[:4], x[4][:-1]], 5),
    "two swapped": (lambda x: [x[0], x[2], x[1], *x[3:]], 2),
    "one twice": (lambda x: [*x[:3], x[2], *x[3:]], 4),
    "one put in": (lambda x: [*x[:2], forged(x[1], 3), *x[2:]], 4),
    "two put behind the end": (lambda x: [*x, forged(x[4], 6), forged(forged(x[4], 6), 7)], 6),
    "garbage behind the end": (lambda x: [*x, b"{}\n"], 6),
    "much behind the end": (lambda x: [*x, b"x" * 40_000], 6),
    "an empty line": (lambda x: [*x[:2], b"\n", *x[2:]], 3),
    "no JSON": (lambda x: [*x[:2], b"hello\n", *x[3:]], 3),
    "deep JSON": (lambda x: [*x[:2], b"[" * 20_000 + b"\n", *x[3:]], 3),
    "a long line": (lambda x: [*x[:2], b"x" * 100_000 + b"\n", *x[3:]], 3),
    "a list in an entry": (lambda x: [*x[:2], x[2][:-2] + b', "a": [1]}\n', *x[3:]], 3),
    "another format": (lambda x: [x[0].replace(b'"format": 1', b'"format": 2'), *x[1:]], 1),
    "the last replaced": (lambda x: [*x[:4], forged(x[3], 5)], 5),
    "all replaced": (lambda x: other_log(len(x)), 5),
    "all replaced by fewer": (lambda x: other_log(len(x) - 2), 4),
}


def forged(before: bytes, number: int) -> bytes:
    entry = {"number": number, "time": "2026-01-01T00:00:00+00:00", "event": "left"}
    return json.dumps({**entry, "previous": hashlib.sha256(before).hexdigest()}).encode() + b"\n"


def other_log(length: int) -> list[bytes]:
    first = {"format": 1, "number": 1, "time": "2026-01-01T00:00:00+00:00", "event": "left"}
    lines = [json.dumps({**first, "previous": START}).encode() + b"\n"]
    for number in range(2, length + 1):
        lines.append(forged(lines[-1], number))
    return lines


@pytest.mark.parametrize("what", TAMPERED)
def test_whatever_is_done_to_the_lines_is_noticed(path: Path, what: str) -> None:
    log = AuditLog(path)
    tamper, bad_line = TAMPERED[what]
    path.write_bytes(b"".join(tamper(path.read_bytes().splitlines(keepends=True))))
    content = path.read_bytes()

    report = check(path)

    assert report.bad_line == bad_line
    assert f"line {bad_line}" in report.problem or "does not follow" in report.problem
    with pytest.raises(CheckpointError, match=r"broken: .* move audit.jsonl and audit.head.json"):
        AuditLog(path)
    if what.startswith(("the last", "half", "its end", "all", "two put", "garbage", "much")):
        with pytest.raises(CheckpointError, match="broken"):  # the running site sees the end
            log.record("left", message="train")
    assert path.read_bytes() == content  # kept for those who look into it


def test_a_changed_byte_is_noticed_anywhere(path: Path) -> None:
    content = path.read_bytes()
    for place in range(0, len(content), 3):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        line = content[:place].count(b"\n") + 1
        assert check(path).bad_line in (line - 1, line), place


def test_a_changed_byte_of_the_head_is_noticed_anywhere(path: Path) -> None:
    content = head_path(path).read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        head_path(path).write_bytes(changed)
        assert check(path).problem, place


LINES = st.lists(
    st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
        ).map(lambda value: json.dumps(value).encode()),
        st.fixed_dictionaries(
            {},
            optional={
                "number": st.integers() | st.none() | st.floats(),
                "time": st.sampled_from(["2026-01-01T00:00:00+00:00", "0001-01-01T00:00+14:00", 5]),
                "event": st.sampled_from(["left", 5, None]),
                "previous": st.sampled_from([START, "", [], None]),
                "format": st.integers() | st.none(),
            },
        ).map(lambda entry: json.dumps(entry).encode()),
    )
)


@given(lines=LINES, head=st.binary(max_size=60) | st.integers(0, 200))
@settings(deadline=None, max_examples=100)
def test_whatever_is_in_the_files_they_are_judged(lines: list[bytes], head: bytes | int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit.jsonl"
        content = b"\n".join(lines)
        path.write_bytes(content)
        if isinstance(head, int):
            chain.Head(head % 4, START, head).write(path)
        else:
            head_path(path).write_bytes(head)
        report = check(path)
        assert sum(line.size for line in read(path)) == len(content)
        try:
            AuditLog(path).record("stopped")
        except CheckpointError:
            assert report.problem
        else:
            assert report.problem == check(path).problem == ""
            assert report.lines <= 1  # no more than the one the head did not know


@pytest.mark.parametrize("content", [None, "", "{}", '{"format": 1, "lines": NaN, "size": NaN}'])
def test_a_lost_or_damaged_head_is_noticed(path: Path, content: str | None) -> None:
    log = AuditLog(path)
    if content is None:
        head_path(path).unlink()
    else:
        head_path(path).write_text(content)

    assert "audit.head.json" in check(path).problem
    for record in (log.record, lambda event: AuditLog(path).record(event)):
        with pytest.raises(CheckpointError, match=r"broken: .*head\.json"):
            record("stopped")


def test_a_removed_log_is_noticed(path: Path) -> None:
    log = AuditLog(path)
    path.unlink()
    assert check(path).bad_line == 1
    with pytest.raises(CheckpointError, match="cut off: the head knows 5 lines"):
        log.record("stopped")


def test_a_log_behind_a_link_is_not_followed(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))
    with pytest.raises(CheckpointError, match="cannot be opened"):
        AuditLog(path)


def kill_at(step: int, path: Path, *, half: bool = False) -> bool:
    """Record in a process that is killed before its ``step``-th call; whether it got to the end."""
    child = os.fork()
    if child == 0:
        left = step

        def counted(name: str) -> None:
            call = getattr(os, name)

            def wrapped(*args: object, **more: object) -> object:
                nonlocal left
                left -= 1
                if left == 0:
                    if half and name == "write":
                        call(args[0], args[1][: len(args[1]) // 2])
                    os._exit(1)
                return call(*args, **more)

            setattr(os, name, wrapped)

        for name in ("open", "write", "fsync", "ftruncate", "replace", "close", "unlink", "lseek"):
            counted(name)
        AuditLog(path).record("approved", what="federation")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("started", [False, True], ids=["first line", "sixth line"])
def test_a_kill_at_any_step_costs_nothing(path: Path, started: bool, half: bool) -> None:
    if not started:
        path = path.with_name("new.jsonl")
    before, found = records(path), set()
    head = head_path(path).read_bytes() if started else b""
    content = path.read_bytes() if started else b""
    for step in range(1, 100):
        done = kill_at(step, path, half=half)
        assert check(path).problem == ""
        AuditLog(path).record("stopped")
        assert check(path) == Report(len(records(path)), list(read(path))[-1].sha256)
        found.add(tuple(records(path)[len(before) :]))
        if done:
            break
        for file, kept in ((path, content), (head_path(path), head)):
            file.unlink() if not started else file.write_bytes(kept)
    assert done
    expected = {("stopped",), ("approved", "stopped")}
    assert found == expected | ({("repaired", "stopped")} if half else set())


def test_a_power_cut_leaves_any_part_of_the_last_line(path: Path) -> None:
    """The head is of before the line; of that any part is on the disk, or zeros in its place."""
    head, before = head_path(path).read_bytes(), path.read_bytes()
    AuditLog(path).record("approved", what="federation")
    line = path.read_bytes()[len(before) :]
    for cut in range(1, len(line)):
        for rest in (line[:cut], line[:cut] + bytes(len(line) - cut), bytes(cut) + line[cut:]):
            path.write_bytes(before + rest)
            head_path(path).write_bytes(head)
            assert check(path).note == "line 6 was interrupted, and will be replaced"
            if cut % 40 == 0:
                AuditLog(path).record("stopped")
                assert records(path)[5:] == ["repaired", "stopped"]
                assert check(path).lines == 7
                repaired = list(read(path))[5].fields
                assert repaired["sha256"] == hashlib.sha256(rest).hexdigest()


def test_a_line_is_on_the_disk_before_the_head_and_the_head_before_the_caller_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, done = AuditLog(path), []
    fsync, replace = os.fsync, os.replace

    def synced(file: int) -> None:
        fsync(file)
        done.append(f"synced {Path(f'/proc/self/fd/{file}').readlink().name}")

    def replaced(source: Path, target: Path) -> None:
        replace(source, target)
        done.append(f"replaced {target.name}")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    log.record("left", message="train")

    assert done == [
        "synced audit.jsonl",
        "synced audit.head.json.tmp",
        "replaced audit.head.json",
        "synced work",
    ]


def test_a_full_disk_leaves_the_log_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, before, write = AuditLog(path), path.read_bytes(), os.write

    def until_full(file: int, data: bytes) -> int:
        if path.stat().st_size > len(before):
            raise OSError(28, "No space left on device")
        return write(file, data[:10])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", until_full)
        with pytest.raises(OSError, match="No space left"):
            log.record("left", message="train")
    assert path.read_bytes() == before
    log.record("left", message="train")
    assert check(path).lines == 6


APPEND = """
import sys
from pathlib import Path
from nnunetv2_federated.federation.audit import AuditLog
log = AuditLog(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(40):
    log.record("asked", process=sys.argv[2], round=number)
"""


def test_processes_that_append_at_once_make_one_chain(path: Path) -> None:
    names = ("site", "approve", "withdraw")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", APPEND, str(path), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    for process in processes:
        process.communicate()

    assert check(path).lines == 5 + 3 * 40
    for name in names:
        rounds = [line.fields["round"] for line in read(path) if line.fields.get("process") == name]
        assert rounds == list(range(40))


def test_a_process_that_stands_still_holds_nobody_for_ever(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "_LOCK_SECONDS", 0.1)
    log = AuditLog(path)
    with (
        chain.locked(path, os.O_RDONLY),
        pytest.raises(CheckpointError, match=r"held for 0\.1 s by another process"),
    ):
        log.record("stopped")
    log.record("stopped")


def test_a_long_log_is_appended_to_without_reading_it(tmp_path: Path) -> None:
    if not Path("/proc/self/io").exists():
        pytest.skip("counts the bytes read with /proc")

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    path = tmp_path / "audit.jsonl"
    lines = other_log(100_000)
    path.write_bytes(b"".join(lines))
    chain.Head(len(lines), chain.sha256(lines[-1]), path.stat().st_size).write(path)
    log = AuditLog(path)
    before = bytes_read()

    log.record("left", message="train")

    assert bytes_read() - before < 3 * chain.LONGEST_LINE < path.stat().st_size / 100
    assert check(path).lines == 100_001


# The command


@pytest.fixture
def site(path: Path) -> Path:
    """The site.toml beside which the log is."""
    file = path.parent.parent / "site.toml"
    file.write_text(
        'name = "hannover"\nserver = "fl.example.org:9092"\nca = "ca.crt"\nkey = "site.key"\n'
        'coordinator = "coordinator.pub"\n'
    )
    return file


def audit(*arguments: object) -> int:
    try:
        command.main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_command_shows_what_left_and_the_head(
    site: Path, path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    AuditLog(path).record("left", message="query.describe", bytes=500_000)
    AuditLog(path).record("refused", message="train", reason="[/x] round 3 again")
    assert audit(site) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert "round 1, by SHA256:9f86d081884c7d65" in shown
    assert "reason [/x] round 3 again" in shown
    assert "2 messages left, 132.5 MB: 1 query.describe, 1 train" in lines[-2]
    assert lines[-1] == f"the chain holds: 7 lines, head {check(path).sha256}"

    assert audit(site, "--event", "left", "refused") == 0
    numbers = [
        line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if "│" in line
    ]
    assert numbers == ["5", "6", "7"]


def test_a_period_without_a_message_says_so(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit(site, "--since", "2999-01-01") == 0
    assert "nothing was recorded in this period" in capsys.readouterr().out
    assert audit(site, "--since", "2026-01-01T08:00+02:00") == 0
    assert "1 message left, 132.0 MB: 1 train" in capsys.readouterr().out


def test_a_table_for_a_spreadsheet_has_no_formula(
    site: Path, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    AuditLog(path).record("refused", message="=cmd()", reason='a;=1+1,"b"\n-2', round=-1)
    file = tmp_path / "audit.csv"

    assert audit(site, "--csv", file) == 0

    assert f"wrote 6 lines to {file}" in capsys.readouterr().out
    rows = list(csv.DictReader(file.open(newline="")))
    assert [row["event"] for row in rows] == records(path)
    assert rows[4]["bytes"] == "132000000"
    assert rows[5]["message"] == "'=cmd()"
    assert rows[5]["reason"] == 'a;\'=1+1,"b" -2'
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_head_on_paper_tells_a_replaced_log(
    site: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noted = check(path).sha256
    AuditLog(path).record("stopped")
    on_paper = f"{noted[:8]} {noted[8:20].upper()}"
    assert audit(site, "--head", on_paper) == 0
    assert "is line 5" in capsys.readouterr().out

    lines = other_log(6)
    path.write_bytes(b"".join(lines))
    chain.Head(6, chain.sha256(lines[-1]), path.stat().st_size).write(path)
    assert check(path).problem == ""  # it holds together
    assert audit(site, "--head", on_paper) == 1
    assert "no line of" in capsys.readouterr().err


def test_a_changed_log_is_told_in_one_line_and_nothing_is_shown(
    site: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_bytes(path.read_bytes().replace(b"132000000", b"  1000000"))
    assert audit(site) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert "line 5 is not the one the head knows" in shown.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--since", "yesterday"], "give a date such as 2026-03-01"),
        (["--event", "send"], "--event send: is unknown; known are started,"),
        (["--head", "abc"], "give 16 to 64 of the digits"),
        (["--head", "g" * 20], "give 16 to 64 of the digits"),
        (["--csv", "/nowhere/audit.csv"], "--csv /nowhere/audit.csv cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    site: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    assert audit(site, *arguments) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_a_site_that_never_ran_has_no_log(
    site: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.unlink()
    head_path(path).unlink()
    assert audit(site) == 2
    assert "has no line: the site has not run with this site.toml yet" in capsys.readouterr().err
    assert audit(site.with_name("none.toml")) == 2


def test_the_page_names_every_event() -> None:
    page = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()
    named = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert named == list(EVENTS)
