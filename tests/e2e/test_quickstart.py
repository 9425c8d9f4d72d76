"""What the README and the notebook show, in the environment that runs the tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

REPOSITORY = Path(__file__).parents[2]


def _without_nnunet() -> dict[str, str]:
    """Return this environment without what a user's shell would not have."""
    hidden = ("nnUNet_", "NNUNETV2_")
    return {k: v for k, v in os.environ.items() if not k.startswith(hidden)}


@pytest.mark.slow(100)
def test_the_quickstart_ends_with_a_dice_score(tmp_path: Path) -> None:
    environment = _without_nnunet()
    environment |= {"QUICKSTART_VENV": sys.prefix, "nnUNet_def_n_proc": "1"}
    environment |= {"QUICKSTART_ROUNDS": "3"}  # the commands are the same, and two cores are few
    done = subprocess.run(
        ["bash", str(REPOSITORY / "examples" / "quickstart.sh"), str(tmp_path / "work")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 3/3" in done.stdout
    assert "Dice" in done.stdout
    assert list((tmp_path / "work").rglob("federation.png"))


@pytest.mark.slow(150)
def test_the_notebook_goes_from_data_to_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "segmentation").symlink_to(REPOSITORY / "examples" / "segmentation")
    for name in set(os.environ) - set(_without_nnunet()):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{Path(sys.prefix, 'bin')}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(REPOSITORY / "examples" / "notebook.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # nothing generated is kept
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    assert re.search(r"Dice of the global model: 0\.\d{3}", text), text
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert text.count("lower middle upper") == 6  # a line for each round
