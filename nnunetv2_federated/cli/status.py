"""``nnUNetv2_federated_status``: where a federation stands."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from rich.console import Console

from nnunetv2_federated.cli.command import Command
from nnunetv2_federated.cli.console import as_table
from nnunetv2_federated.cli.exit_status import run_command
from nnunetv2_federated.cli.flags import build_parser
from nnunetv2_federated.federation.choice import Choice, Choices, record
from nnunetv2_federated.federation.history import History, read_history

Row = tuple[str, str, str, str, str]


DESCRIPTION = (
    """Show rounds and sites of a federation, running or ended, from its federation.json."""
)


@record
class StatusChoices(Choices):
    """Choices of ``nnUNetv2_federated_status``."""

    group: ClassVar[str] = "federation"

    folder: Annotated[
        Path, Choice("nnU-Net's folder of the fold, .../fold_0", "FOLD_FOLDER", positional=True)
    ]


def command() -> Command[StatusChoices]:
    """Return the command line."""
    parser = build_parser(StatusChoices, "nnUNetv2_federated_status", DESCRIPTION)
    return Command(StatusChoices, parser)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command(lambda: _status(command().parse(argv)))


def _status(choices: StatusChoices) -> None:
    history = read_history(choices.folder)
    done, total = len(history.rounds), history.num_rounds
    title = f"{history.dataset} {history.configuration}: round {done} of {total}"
    columns = ("site", "cases", "rounds", "last answer", "last failure")
    Console(highlight=False).print(as_table(title, columns, site_rows(history, time.time())))


def site_rows(history: History, now: float) -> list[Row]:
    """Return one row per site.

    Parameters
    ----------
    history
        Content of ``federation.json``.
    now
        Present time, in seconds since the epoch.
    """
    rows = []
    for name, site in history.sites.items():
        answered = [record for record in history.rounds if name in record.sites]
        failed = [record for record in history.rounds if name in record.failed]
        last = failure = ""
        if answered:
            ended = answered[-1].started + answered[-1].seconds.round
            last = f"round {answered[-1].round + 1}, {_ago(now - ended)}"
        if failed:
            failure = f"round {failed[-1].round + 1}: {failed[-1].failed[name]}"
        cases, rounds = str(site.training_cases), str(len(answered))
        rows.append((name, cases, rounds, last or "never", failure))
    return rows


def _ago(seconds: float) -> str:
    if math.isnan(seconds):
        return "at an unknown time"
    for length, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"


if __name__ == "__main__":
    main()
