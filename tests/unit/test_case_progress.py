"""What is seen of work that is done case by case."""

from __future__ import annotations

import io
import sys

import pytest

from nnunetv2_federated.nnunet.data.case_progress import counted


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_file_has_a_line_a_minute_with_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = {"now": 0.0}
    done = []
    for case in counted(range(10), "bern: fingerprint", 10, lambda: seconds["now"]):
        done.append(case)
        seconds["now"] += 25.0  # each case takes so long

    assert done == list(range(10))
    assert capsys.readouterr().err.splitlines() == [
        "bern: fingerprint: 3 of 10 cases, 3 min left",  # 7 * 25 s
        "bern: fingerprint: 6 of 10 cases, 2 min left",  # 4 * 25 s
        "bern: fingerprint: 9 of 10 cases, 25 s left",
    ]


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    assert list(counted(range(3), "bern: fingerprint", 3)) == [0, 1, 2]
    assert "bern: fingerprint: 100%" in screen.getvalue()
