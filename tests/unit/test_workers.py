"""How many workers nnU-Net starts from a command of this package, and from one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunetv2_federated.nnunet.workers import bound_workers, usable_cores

SAY = "from nnunetv2.configuration import default_num_processes as n; print(n)"


@pytest.mark.parametrize(("cores", "workers"), [(1, "1"), (2, "2"), (8, "8"), (128, "8")])
def test_workers_are_as_many_as_cores_and_never_more_than_nnunets_own(
    cores: int, workers: str
) -> None:
    variables: dict[str, str] = {}
    bound_workers(variables, {}, cores)
    assert variables == {"nnUNet_def_n_proc": workers}


def test_what_the_user_has_set_stays() -> None:
    variables = {"nnUNet_def_n_proc": "12"}
    bound_workers(variables, {}, 2)
    assert variables == {"nnUNet_def_n_proc": "12"}


def test_a_command_of_nnunets_own_keeps_its_number() -> None:
    variables: dict[str, str] = {}
    bound_workers(variables, {"nnunetv2.configuration": object()}, 2)
    assert variables == {}


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ("import nnunetv2_federated.cli.site", str(min(8, usable_cores()))),
        ("import nnunetv2.configuration, nnunetv2_federated.cli.site", "8"),
    ],
    ids=["ours", "nnU-Net's"],
)
def test_nnunet_takes_the_number_of_the_command_that_imports_it(first: str, expected: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "nnUNet_def_n_proc"}
    done = subprocess.run(
        [sys.executable, "-c", f"{first}; {SAY}"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{expected}\n"


def test_a_worker_of_a_site_imports_its_command_and_no_framework(tmp_path: Path) -> None:
    """A spawned worker imports the main module anew: what that imports, each worker holds."""
    program = (
        "import multiprocessing, runpy, sys\n"
        "from nnunetv2_federated.cli.site import main\n"
        "def heavy(): return [n for n in ('torch', 'nnunetv2', 'flwr') if n in sys.modules]\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool: print(pool.apply(heavy))\n"
    )
    script = tmp_path / "nnUNetv2_federated_site"  # as pip writes it
    script.write_text(program)
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "[]\n", done.stderr
