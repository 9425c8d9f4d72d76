"""What a training prints: a line a round, and bars where somebody looks on."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from nnunetv2_federated.cli import console as console_module
from nnunetv2_federated.cli.console import ConsoleObserver
from nnunetv2_federated.cli.progress_bars import NoBars, NotebookBars, TerminalBars, choose_bars
from nnunetv2_federated.federation.history import RoundRecord
from nnunetv2_federated.federation.messages import SiteDescription
from nnunetv2_federated.federation.progress import Progress
from nnunetv2_federated.federation.round_line import describe_round

ACCEPTED = {"norm": 1.5, "cosine": 0.5, "bound": 10.0, "outcome": "accepted"}
ROUND = {
    "round": 0, "lr": 0.01, "train_loss": -0.5, "loss": -0.25, "dice": 0.75,
    "seconds": {"round": 12.0}, "failed": {}, "updates": {"bern": ACCEPTED},
}  # fmt: skip
LINE = "round  1/10  lr 0.01000  train loss -0.5000  validation loss -0.2500  Dice 0.7500  12.0 s"


def test_a_round_in_which_nothing_happened() -> None:
    assert describe_round(RoundRecord.from_plain(ROUND), 10) == LINE


def test_updates_that_were_not_taken_as_they_came_are_named() -> None:
    updates = {
        "bern": ACCEPTED,
        "lyon": {**ACCEPTED, "norm": 123.4, "outcome": "refused"},
        "oslo": {**ACCEPTED, "norm": 11.0, "outcome": "clipped"},
        "zug": {**ACCEPTED, "norm": 1e30, "bound": None, "outcome": "refused"},
    }
    record = {**ROUND, "updates": updates, "failed": {"lyon": "why", "zug": "why"}}
    assert describe_round(RoundRecord.from_plain(record), 10) == (
        f"{LINE}  failed: lyon, zug  refused: lyon, update norm 123 over 10"
        "  clipped: oslo, update norm 11 over 10  refused: zug, update norm 1e+30 over 1e+12"
    )


def test_without_a_terminal_a_round_says_how_long_the_others_take(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # the first round, which also builds trainers, is left out
    times = iter((1000.0, 1120.0, 1300.0))
    monkeypatch.setattr(
        console_module, "Progress", lambda total: Progress(lambda: next(times), total)
    )
    with ConsoleObserver(4) as console:
        for number in range(3):
            console.site_started("bern", 1)
            console.iteration_done()
            console.round_finished(RoundRecord.from_plain({**ROUND, "round": number}))
    lines = capsys.readouterr().out.splitlines()
    line = LINE.replace("round  1/10", "round {}/4")
    assert lines == [
        line.format(1),
        f"{line.format(2)}  4 min left",  # two rounds of 120 s
        f"{line.format(3)}  2 min left",  # one of (120 + 180) / 2 s
    ]


def test_a_terminal_and_a_notebook_have_bars_and_a_file_has_none() -> None:
    kinds = {
        "terminal": Console(file=io.StringIO(), force_terminal=True, force_jupyter=False),
        "notebook": Console(file=io.StringIO(), force_jupyter=True),
        "file": Console(file=io.StringIO()),
        "quiet": Console(file=io.StringIO(), force_terminal=True, quiet=True),
    }
    chosen = {name: type(choose_bars(console, 3)) for name, console in kinds.items()}
    assert chosen == {
        "terminal": TerminalBars,
        "notebook": NotebookBars,
        "file": NoBars,
        "quiet": NoBars,
    }


def test_the_observer_draws_its_bars_in_a_notebook(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    program = (
        "from nnunetv2_federated.cli.console import ConsoleObserver\n"
        "from nnunetv2_federated.federation.history import RoundRecord\n"
        "with ConsoleObserver(2) as observer:\n"
        "    observer.run_started(1, 2)\n"
        "    observer.site_started('bern', 3)\n"
        "    observer.iteration_done()\n"
        f"    observer.round_finished(RoundRecord.from_plain({ {**ROUND, 'round': 1}!r}))\n"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(program)])
    done = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    shown = "".join(
        str(output.get("text", output.get("data", {}).get("text/plain", "")))
        for output in done.cells[0].outputs
    )
    assert "continuing after round 1 of 2" in shown
    assert "round 2/2" in shown
    assert "rounds: 100%" in shown or "2/2" in shown.partition("rounds")[2]
    assert "warn" not in shown.lower()


def test_the_server_shows_its_sites_and_where_they_differ(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sites = [
        SiteDescription("bern", 5, 2, "m", "p", {}, {"torch": "2.9", "flwr": "1.41"}, "cpu", 81.2),
        SiteDescription("oslo", 7, 0, "m", "p", {}, {"torch": "2.8", "flwr": "1.41"}, "H100", 9.8),
    ]

    ConsoleObserver(3).sites_joined(sites)

    rows = [line.split("│") for line in capsys.readouterr().out.splitlines()]
    cells = [[cell.strip() for cell in row[1:-1]] for row in rows if len(row) > 2]
    assert cells == [
        ["bern", "5", "2", "cpu", "81 GB", "1.41", "2.9"],
        ["oslo", "7", "0", "H100", "10 GB", "1.41", "2.8"],
    ]
    assert rows[-1] == ["sites differ in torch: bern 2.9, oslo 2.8"]
