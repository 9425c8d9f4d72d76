"""``nnUNetv2_federated_status``: where a federation stands."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from nnunetv2_federated.cli.console import as_table
from nnunetv2_federated.cli.options import Options, parse, run_command
from nnunetv2_federated.federation.history import History, read_history

Row = tuple[str, str, str, str, str]


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_federated_status",
        description="Show rounds and sites of a federation, running or ended, from its "
        "federation.json.",
    )
    parser.add_argument(
        "folder", type=Path, metavar="FOLD_FOLDER", help="nnU-Net's folder of the fold, .../fold_0"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = build_parser()
    run_command(lambda: _status(parse(parser, argv)))


def _status(options: Options) -> None:
    history = read_history(options["folder"])
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
