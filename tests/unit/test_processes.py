"""A command that is started again when it is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from consortium import wait_for

from nnunetv2_federated.flower.deployment.server.processes import Child


def test_a_child_that_is_killed_is_started_again_until_it_is_stopped(tmp_path: Path) -> None:
    log, pid = tmp_path / "log", tmp_path / "pid"
    child = Child(["sh", "-c", f"echo $$ > {pid}; echo begun; exec sleep 30"], log, os.environ)
    child.start()
    for times in (1, 2):
        wait_for(
            lambda times=times: log.is_file() and log.read_text().count("begun") == times,
            f"start {times}",
        )
        os.kill(int(pid.read_text()), signal.SIGKILL)
        assert not child.failed()
    child.stop()  # it is about to be started again

    assert log.read_text().count("begun") == 2


def test_a_child_that_ends_by_itself_has_failed_unless_it_is_to_keep_running(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    child = Child(["sh", "-c", "echo begun"], log, os.environ)
    child.start()
    wait_for(child.failed, "end")
    assert child.last_line() == "begun"

    child.keep_running()  # it has ended before this was said
    wait_for(lambda: log.read_text().count("begun") == 2, "second start")
    child.stop()
