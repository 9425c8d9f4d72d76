"""Files that survive a power cut, names that lead nowhere, text that does nothing."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from nnunetv2_federated.federation import files
from nnunetv2_federated.federation.errors import CheckpointError, SettingsError
from nnunetv2_federated.federation.files import (
    only_one,
    read_state,
    replacing,
    write_atomically,
    write_state,
)
from nnunetv2_federated.federation.names import check_dataset_name, check_fold, check_name
from nnunetv2_federated.federation.text import clean, csv_cell, one_line


class Disk:
    """What is on the disk after a power cut: only what was synced, in the order it was.

    A write that was not synced is lost; a rename is lost until its folder is synced, or survives
    without the content (what ext4 did in 2009): both are looked at.
    """

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.synced: dict[str, bytes] = {path.name: path.read_bytes()} if path.is_file() else {}
        self.outcomes: list[bytes | None] = []
        replace, fsync = Path.replace, files.sync

        def synced(target: Path) -> None:
            fsync(target)
            if target.is_dir():
                self.synced[path.name] = self.synced.get("renamed", b"")
            else:
                self.synced[target.name] = target.read_bytes()
            self.cut()

        def replaced(source: Path, target: Path) -> Path:
            found = replace(source, target)
            self.synced["renamed"] = self.synced.get(source.name, b"")  # its content, if any
            self.outcomes.append(self.synced["renamed"])
            return found

        monkeypatch.setattr(files, "sync", synced)
        monkeypatch.setattr(Path, "replace", replaced)

    def cut(self) -> None:
        self.outcomes.append(self.synced.get(self.path.name))


def test_after_a_power_cut_a_file_is_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    path.write_text("old")
    disk = Disk(path, monkeypatch)

    write_atomically(path, "new")

    assert set(disk.outcomes) == {b"old", b"new"}
    assert disk.outcomes[-1] == b"new"  # once the call returns it stays


@pytest.mark.parametrize(
    "error", [OSError("disk full"), RuntimeError("torch"), KeyboardInterrupt()]
)
def test_whatever_interrupts_a_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "state"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write_half()

    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    assert path.read_text() == "old"


def test_state_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = tmp_path / "work" / "approved.json"
        write_state(path, {"approved": ["a"]}, 1)
        write_state(path, {"approved": ["b"]}, 1)
    finally:
        os.umask(before)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert read_state(path, 1, "") == {"approved": ["b"]}
    assert read_state(path.with_name("none"), 1, "") is None


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "approved.json is empty: approve again"),
        ('{"format": 1, "approv', "approved.json is damaged: approve again"),
        ("[" * 100_000, "approved.json is damaged: approve again"),
        ("[]", "is not a state file of this program: approve again"),
        ('{"approved": []}', "is not a state file of this program: approve again"),
        ('{"format": 3}', "has format 3, this installation knows 2: upgrade"),
        ('{"format": 1}', "of an older nnunetv2-federated"),
    ],
)
def test_a_state_that_cannot_be_read_is_not_an_absent_one(
    tmp_path: Path, content: str, text: str
) -> None:
    path = tmp_path / "approved.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=text):
        read_state(path, 2, "approve again")


@pytest.mark.parametrize(
    "name", ["nnUNetPlans", "3d_fullres", "Centre-2", "nnUNetPlans_iso0.5", "_private", "a+b"]
)
def test_what_is_a_name(name: str) -> None:
    assert check_name("plans", name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../plans", "a/b", "/etc/passwd", "a\\b", "a..b", ".hidden", "a.", "-a"),
        *(
            "a b",
            "a\nb",
            "a\x00b",
            "a\x1b[2J",
            "x" * 129,
            "CON",
            "naïve",
            "٣",
            "%2e%2e",
            "~",
            "$HOME",
        ),
        *(None, 5, ["a"], b"a", True),
    ],
)
def test_what_is_no_name(name: object) -> None:
    with pytest.raises(SettingsError, match="is not a name") as error:
        check_name("plans", name)
    assert "\x1b" not in str(error.value)
    assert "\n" not in str(error.value)


def test_datasets_and_folds_have_nnunets_names() -> None:
    assert check_dataset_name("Dataset501_Lung") == "Dataset501_Lung"
    assert [check_fold(0), check_fold("all")] == [0, "all"]
    for dataset in ("501", "Dataset1_A", "Dataset501_", "Dataset501_../x"):
        with pytest.raises(SettingsError):
            check_dataset_name(dataset)
    for fold in (-1, 1000, 0.0, True, "0", "../all", None, [0]):
        with pytest.raises(SettingsError, match="give a number such as 0, or all"):
            check_fold(fold)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("disk full", "disk full"),
        ("two\nlines\r\n\tand a tab", "two lines and a tab"),
        ("\x1b[31mred\x1b[0m \x9b2J", "[31mred [0m 2J"),
        ("right\u202eto left", "right to left"),
        ("a\u2028b\u0000c", "a b c"),
        ("[/x] <b>", "[/x] <b>"),
        ("x" * 301, "x" * 299 + "…"),
        (None, "None"),
    ],
)
def test_text_from_outside_is_one_harmless_line(text: object, expected: str) -> None:
    assert clean(text) == expected


def test_a_megabyte_of_text_is_cut() -> None:
    assert len(clean("\n" * 10**6 + "x")) == 0
    assert len(clean("x\n" * 10**6)) == 300


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'=1"),
        (" =1", "'=1"),
        ("\uff1dcmd()", "'\uff1dcmd()"),  # full width: Excel takes it for =
        ("a;=cmd();b,-1", "a;'=cmd();b,'-1"),
        ('"=cmd()', "\"'=cmd()"),
        ("bern 5 = 2 + 3", "bern 5 = 2 + 3"),
        ("a-b@c", "a-b@c"),
    ],
)
def test_a_cell_is_no_formula_wherever_a_line_is_split(text: str, cell: str) -> None:
    assert csv_cell(text) == cell


def test_a_line_keeps_its_blanks() -> None:
    assert one_line("round  1/3\n\x1b[2J  lr", 100) == "round  1/3  [2J  lr"
    assert one_line("x" * 10**6, 5) == "xxxxx"


@pytest.mark.skipif(os.name == "nt", reason="locks nothing on Windows")
def test_a_lock_that_was_removed_while_it_was_waited_for_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two would hold it: one the file that is gone, one the file in its place."""
    import fcntl  # noqa: PLC0415

    lock = tmp_path / "lock"
    flock = fcntl.flock
    removals = [lock.unlink]

    def removed_just_before(file, operation) -> None:
        if removals:
            removals.pop()()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", removed_just_before)
    with (
        only_one(lock, "the first", remove=True),
        pytest.raises(SettingsError, match="the second"),
        only_one(lock, "the second"),
    ):
        pass
    assert not lock.exists()


def test_a_site_runs_once(tmp_path: Path) -> None:
    with (
        only_one(tmp_path / "lock", "this site runs already"),
        pytest.raises(SettingsError, match="runs already"),
        only_one(tmp_path / "lock", "this site runs already"),
    ):
        pass
    with only_one(tmp_path / "lock", "this site runs already"):
        pass
