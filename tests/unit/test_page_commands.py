"""What docs/deployment.md tells to type, without running it."""

from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path

import pytest

from nnunetv2_federated.cli import provision, server, site

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_command_of_the_try_is_known_to_its_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    page = importlib.import_module("deployment_page")
    commands = page.read_commands(page.PAGE.read_text(), 1234)

    assert [line.split()[0] for line in commands.dataset] == [
        "python",
        "nnUNetv2_plan_and_preprocess",
    ]
    assert commands.everywhere == ("export nnUNet_n_proc_DA=0",)
    name, *flags = commands.provision.split()
    assert name == "nnUNetv2_federated_provision"
    provisioned = provision.command().parse(flags)
    assert provisioned.server == "localhost:1234"
    name, *flags = commands.server.split()
    assert name == "nnUNetv2_federated_server"
    assert server.command().parse([*flags, "--server", "localhost:1234"]).rounds == 3
    found = []
    for line in commands.sites:
        results, name, *flags = line.split()
        assert name == "nnUNetv2_federated_site"
        found.append(results.removeprefix("nnUNet_results=results_"))
        settings = site.command().parse(flags).site
        assert settings == Path("credentials", "sites", found[-1], "site.toml")
    assert found == list(provisioned.sites) == ["bern", "lyon", "oslo"]


def test_a_terminal_says_yes_when_asked_and_ctrl_c_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    page = importlib.import_module("deployment_page")
    script = tmp_path / "site.py"
    script.write_text(
        "import sys, time\n"
        "print(sys.stdin.isatty(), input('take part? [y/N] '), flush=True)\n"
        "try: time.sleep(60)\n"
        "except KeyboardInterrupt: print('stopped')\n"
    )
    terminal = page.Terminal(f"A=b {sys.executable} {script}", dict(os.environ), tmp_path)
    try:
        end = time.monotonic() + 30
        while "True y" not in terminal.said and time.monotonic() < end:
            time.sleep(0.05)
        assert terminal.press_ctrl_c() == 0
        assert terminal.said.replace("\r", "").splitlines() == [
            "take part? [y/N] y",
            "True y",
            "stopped",
        ]
    finally:
        terminal.close()
