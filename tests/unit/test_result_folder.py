"""Wherever a start is killed, what an earlier run can be resumed from is whole."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.files import only_one
from nnunetv2_federated.federation.run import Run, SiteCases, read_run
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.nnunet.training.build_trainer import move_output
from nnunetv2_federated.nnunet.training.result_folder import (
    LOCK_FILE,
    begin,
    drop_previous,
    has_previous,
    no_earlier_run,
    one_preparation,
    one_run,
    put_back,
)


def make_run(name: str) -> Run:
    sites = (SiteCases("a", "Dataset901_Balls", (name,), ()),)
    return Run("Dataset901_Balls", "2d", 0, "T", "P", "cpu", FederationSettings(), sites)


class Killed(BaseException):
    """Nothing cleans up after it."""


class Kill:
    """Ends a process before a chosen operation on files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 10**6
        for owner, name in ((os, "unlink"), (os, "rmdir"), (os, "replace"), (os, "mkdir")):
            monkeypatch.setattr(owner, name, self.before(getattr(owner, name)))

    def before(self, function):
        def hooked(*args, **kwargs):
            if self.left == 0:
                raise Killed
            self.left -= 1
            return function(*args, **kwargs)

        return hooked


def saved_run(folder: Path, name: str) -> None:
    (folder / "sites" / "a").mkdir(parents=True)
    (folder / "run.json").write_text(make_run(name).to_json())
    (folder / "state.pt").write_text(name)
    (folder / "sites" / "a" / "after_round_0.pt").write_text(name)


def is_whole(folder: Path, name: str) -> bool:
    try:
        read_run(folder)
        files = (folder / "state.pt", folder / "sites" / "a" / "after_round_0.pt")
        return [file.read_text() for file in files] == [name, name]
    except (OSError, SettingsError):
        return False


@pytest.mark.parametrize("before", ["saved", "saved, and one before it", "started only"])
@pytest.mark.parametrize("then", ["nothing", "a round", "refused"])
def test_a_start_killed_anywhere_leaves_an_earlier_run_whole(
    before: str, then: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill = Kill(monkeypatch)
    for operations in range(60):
        fold = tmp_path / str(operations)
        folder, previous = fold / "federation", fold / "federation.previous"
        if before == "started only":
            saved_run(previous, "earlier")
            folder.mkdir()
            (folder / "run.json").write_text("of the start before")
        else:
            saved_run(folder, "earlier")
        if before == "saved, and one before it":
            saved_run(previous, "the one before")
        kill.left = operations
        try:
            begin(folder, make_run("new"))
            if then == "a round":
                saved_run_of_new = folder / "state.pt"
                saved_run_of_new.write_text("new")
                drop_previous(folder)
            elif then == "refused":
                put_back(folder)
        except Killed:
            done = False
        else:
            done = True
        kill.left = 10**6
        new = (folder / "state.pt").is_file() and (folder / "state.pt").read_text() == "new"
        assert new or is_whole(folder, "earlier") or is_whole(previous, "earlier")
        if done:
            assert has_previous(folder) == (then == "nothing")
            assert is_whole(folder, "earlier") == (then == "refused")
            return
    pytest.fail("more operations than thought of")


def test_a_start_that_cannot_write_leaves_the_earlier_run_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "federation"
    saved_run(folder, "earlier")
    run = make_run("new")
    monkeypatch.setattr(Run, "to_json", lambda _: (_ for _ in ()).throw(OSError(28, "full")))

    with pytest.raises(OSError, match="full"):
        begin(folder, run)

    monkeypatch.undo()
    assert is_whole(folder, "earlier")
    assert not has_previous(folder)


def test_without_a_run_c_says_how_to_get_at_the_one_before(tmp_path: Path) -> None:
    folder = tmp_path / "federation"
    assert "start it without --c" in str(no_earlier_run(folder))
    saved_run(folder.with_name("federation.previous"), "earlier")
    assert f"rename {folder}.previous to federation" in str(no_earlier_run(folder))


def test_one_process_has_a_folder(tmp_path: Path) -> None:
    fold = tmp_path / "fold_0"
    with one_run(fold), pytest.raises(SettingsError, match=f"is at work in {fold}"), one_run(fold):
        pass
    with one_run(fold):  # it is free again
        pass
    assert not list(fold.iterdir())
    fold.rmdir()
    fold.write_text("a file where the folder should be")
    with pytest.raises(SettingsError, match="nnUNet_results cannot be written"), one_run(fold):
        pass
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_dataset_is_prepared_by_one_process_which_may_say_so_twice(tmp_path: Path) -> None:
    dataset = tmp_path / "Dataset901_Balls"
    with one_preparation(dataset), one_preparation(dataset):
        pass
    assert not list(tmp_path.iterdir())
    with (
        only_one(tmp_path / ".Dataset901_Balls.lock", "another"),
        pytest.raises(SettingsError, match="plans or preprocesses"),
        one_preparation(dataset),
    ):
        pass


def test_trainers_built_in_the_same_second_share_a_log_that_one_of_them_takes(
    tmp_path: Path,
) -> None:
    """As with Ray: nnU-Net names the log after the second, in the one result folder of the run."""
    results = tmp_path / "Dataset901_Balls" / "T__P__2d" / "fold_0"
    log = results / "training_log_2026_1_1_00_00_00.txt"
    results.mkdir(parents=True)
    log.write_text("built\n")
    for site in ("bern", "oslo"):
        built: Any = SimpleNamespace(output_folder=str(results), log_file=str(log), local_rank=0)
        move_output(built, tmp_path / "sites" / site)
        assert built.log_file == str(tmp_path / "sites" / site / log.name)
        assert built.output_folder == built.output_folder_base == str(tmp_path / "sites" / site)
    assert (tmp_path / "sites" / "bern" / log.name).read_text() == "built\n"
    assert not (tmp_path / "sites" / "oslo" / log.name).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sites"]
