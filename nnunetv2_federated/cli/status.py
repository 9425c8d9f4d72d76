"""``nnUNetv2_federated_status``: where a federation stands."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nnunetv2_federated.cli.options import Options, parse, run_command
from nnunetv2_federated.federation.errors import SettingsError

Row = tuple[str, str, str, str, str]


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_federated_status",
        description="Show rounds and sites of a federation, running or ended, from its "
        "federation.json.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLD_FOLDER", help="nnU-Net's, .../fold_0")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = build_parser()
    run_command(lambda: _status(parse(parser, argv)))


def _status(options: Options) -> None:
    path = options["folder"] / "federation.json"
    try:
        history = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{path} cannot be read ({error}): give the fold_X folder of a federation that has "
            "finished a round."
        ) from error
    rounds, total = history["rounds"], history["settings"]["rounds"]
    title = f"{history['dataset']} {history['configuration']}: round {len(rounds)} of {total}"
    table = Table("site", "cases", "rounds", "last answer", "last failure", title=title)
    for row in site_rows(history, time.time()):
        table.add_row(*row)
    Console(highlight=False).print(table)


def site_rows(history: dict[str, Any], now: float) -> list[Row]:
    """Return one row per site.

    Parameters
    ----------
    history
        Content of ``federation.json``.
    now
        Seconds since the epoch.
    """
    rows = []
    for name, site in history["sites"].items():
        answered = [r for r in history["rounds"] if name in r["sites"]]
        failed = [r for r in history["rounds"] if name in r["failed"]]
        last = "never"
        if answered:
            seconds = now - answered[-1]["started"] - answered[-1]["seconds"]["round"]
            last = f"round {answered[-1]['round'] + 1}, {_ago(seconds)}"
        failure = f"round {failed[-1]['round'] + 1}: {failed[-1]['failed'][name]}" if failed else ""
        rows.append((name, str(site["training_cases"]), str(len(answered)), last, failure))
    return rows


def _ago(seconds: float) -> str:
    for length, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"


if __name__ == "__main__":
    main()
