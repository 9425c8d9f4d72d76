"""What a process says at its end, whichever starts it: a command, or a comparison's training."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from nnunetv2_federated.experiment import train_run
from nnunetv2_federated.federation.errors import RoundError, SettingsError
from nnunetv2_federated.federation.failure import Failure, explain


def test_bad_input_and_a_failed_run_have_their_status() -> None:
    assert explain(SettingsError("--rounds 0: no")) == Failure("--rounds 0: no", 2)
    assert explain(RoundError("round 3:\n too few")) == Failure("round 3: too few", 1)


def test_a_disk_is_named_with_what_to_do() -> None:
    assert explain(OSError(errno.ENOSPC, "No space left", "/data/x")) == Failure(
        "/data/x: No space left: make room, then give the same command again (a training with "
        "--c); what was finished is whole",
        1,
    )
    assert explain(OSError(errno.EROFS, "Read-only", "/data/x")) == Failure(
        "/data/x: Read-only: let this user read and write there, or choose another folder", 2
    )
    assert explain(FileNotFoundError(errno.ENOENT, "No such file")) is None


def test_a_comparisons_training_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its last line is what the report shows for a model that failed."""

    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "state.pt"))

    monkeypatch.setattr(train_run, "read_run", full)
    assert train_run.main([str(tmp_path)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"error: {tmp_path}/state.pt: No space left on device: make room, then give the same "
        "command again (a training with --c); what was finished is whole"
    ]
