"""``nnUNetv2_federated_status``: where a federation stands."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console

from nnunetv2_federated.cli.console import as_table
from nnunetv2_federated.cli.options import parse, run_command
from nnunetv2_federated.experiment.options import Options
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.text import clean

Row = tuple[str, str, str, str, str]

_Count = Annotated[int, Field(ge=0, lt=2**53)]
_Seconds = Annotated[float, Field(gt=-(2**53), lt=2**53)]


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Settings(_Checked):
    rounds: _Count


class _Site(_Checked):
    training_cases: _Count


class _Round(_Checked):
    round: _Count
    started: _Seconds
    seconds: dict[str, _Seconds | None]
    sites: dict[str, Any]
    failed: dict[str, str]


class _History(_Checked):
    """Part of ``federation.json`` that is shown; the file may come from anywhere."""

    dataset: str
    configuration: str
    settings: _Settings
    sites: dict[str, _Site]
    rounds: list[_Round]


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
    history = _read(options["folder"] / "federation.json")
    rounds, total = history["rounds"], history["settings"]["rounds"]
    title = f"{history['dataset']} {history['configuration']}: round {len(rounds)} of {total}"
    columns = ("site", "cases", "rounds", "last answer", "last failure")
    Console(highlight=False).print(as_table(title, columns, site_rows(history, time.time())))


def _read(path: Path) -> dict[str, Any]:
    try:
        return _History.model_validate(json.loads(path.read_text("utf-8"))).model_dump()
    except ValidationError as error:
        found = error.errors()[0]
        where = "/".join(str(part) for part in found["loc"])
        what = f"{clean(where, 80)}: {found['msg']}"
    except (OSError, ValueError, RecursionError) as error:
        what = str(error)
    raise SettingsError(
        f"{path} cannot be read ({what}): give the fold_X folder of a federation that has "
        "finished a round."
    )


def site_rows(history: dict[str, Any], now: float) -> list[Row]:
    """Return one row per site.

    Parameters
    ----------
    history
        Content of ``federation.json``.
    now
        Present time, in seconds since the epoch.
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
