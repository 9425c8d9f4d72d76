"""What a command imports, which is what a hospital waits for and reads."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "nnunetv2", "timm", "scipy", "matplotlib")


@pytest.mark.parametrize("command", ["audit", "provision", "status", "trainer_folder"])
def test_a_command_that_only_reads_and_writes_files_is_there_at_once(command: str) -> None:
    program = (
        f"import sys, nnunetv2_federated.cli.{command}; "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
