"""Lines of a comparison while one of its models is trained."""

from __future__ import annotations

import time
from pathlib import Path

from nnunetv2_federated.experiment.follow import rounds_passed_on


def test_rounds_are_passed_on_as_they_are_written_and_nothing_of_before(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text("round 1/3 of an earlier try\n")
    said: list[str] = []
    with rounds_passed_on(log, said.append), log.open("a") as file:
        file.write("Dataset901 2d fold 0: 3 sites\nround 1/3  Dice 0.5000\nround 2/3  Di")
        file.flush()
        end = time.monotonic() + 20
        while not said and time.monotonic() < end:
            time.sleep(0.05)
        assert said == ["round 1/3  Dice 0.5000"]  # half a line waits for its end
        file.write("ce 0.6000\nround 3/3  Dice 0.7000\nresult: here\n")
    assert said == [f"round {n}/3  Dice 0.{4 + n}000" for n in (1, 2, 3)]


def test_a_log_that_is_not_there_or_not_to_be_followed_is_no_matter(tmp_path: Path) -> None:
    said: list[str] = []
    with rounds_passed_on(tmp_path / "absent", said.append):
        pass
    with rounds_passed_on(tmp_path / "log", None):
        (tmp_path / "log").write_text("round 1/1\n")
    assert said == []
