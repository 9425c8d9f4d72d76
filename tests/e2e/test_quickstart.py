"""The first command of the README, in the environment that runs the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow(100)
def test_the_quickstart_ends_with_a_dice_score(tmp_path: Path) -> None:
    hidden = ("nnUNet_", "NNUNETV2_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    environment |= {"QUICKSTART_VENV": sys.prefix, "nnUNet_def_n_proc": "1"}
    done = subprocess.run(
        ["bash", str(REPOSITORY / "examples" / "quickstart.sh"), str(tmp_path / "work")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 10/10" in done.stdout
    assert "Dice" in done.stdout
    assert list((tmp_path / "work").rglob("federation.png"))
