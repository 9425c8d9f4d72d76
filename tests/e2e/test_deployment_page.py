"""The federation of docs/deployment.md, its commands taken word by word from the page."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SITES = ("bern", "lyon", "oslo")


@pytest.mark.deployment
@pytest.mark.slow(240)
def test_the_commands_of_the_page_end_with_a_model_and_each_sites_own_dice(tmp_path: Path) -> None:
    pytest.importorskip("nilearn", reason="the page's dataset comes with the extra 'demo'")
    hidden = ("nnUNet_", "NNUNETV2_")  # OMP_NUM_THREADS stays 1: other tests have the cores, too
    environment = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}

    done = subprocess.run(
        [sys.executable, REPOSITORY / "benchmarks" / "deployment_page.py", tmp_path],
        env={**environment, "nnUNet_compile": "f", "PATH": _with_this_python(environment)},
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )

    said = done.stdout
    assert done.returncode == 0, said + done.stderr
    assert said.count("take part? [y/N] ") == len(SITES)
    server, *sites = said.partition("$ nnUNetv2_federated_server")[2].split("\n$ ")
    assert "round 3/3" in server
    assert "validation Dice of the global model (full validation): 0." in server
    for name, site in zip(SITES, sites, strict=True):
        assert f"results_{name}" in site.splitlines()[0]
        words, asked, after = site.partition("take part? [y/N] ")
        assert asked
        assert "training of 2d, fold 0, with nnUNetTrainerFederated" in words
        assert [after.count(f"round {n} of 3 done: training loss ") for n in (1, 2, 3)] == [1, 1, 1]
        end = after.partition("federation finished after 3 rounds: Dice of the final model here 0.")
        assert f"results_{name}" in end[2]
        assert "waiting for the next (Ctrl-C ends)" in end[2]
        assert "stopped" in end[2]
        assert "refuses this site" not in site
    checkpoints = list((tmp_path / "results").glob("*/*/fold_0/checkpoint_final.pth"))
    assert len(checkpoints) == 1


def _with_this_python(environment: dict[str, str]) -> str:
    """Return ``PATH`` with the commands of the environment that runs the tests first."""
    return os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
