"""Flags that several commands share, and the settings file behind them."""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_federated.experiment.options import Options
from nnunetv2_federated.federation.disk import NO_ROOM, NOT_ALLOWED
from nnunetv2_federated.federation.errors import CheckpointError, FederationError, SettingsError
from nnunetv2_federated.federation.names import check_fold
from nnunetv2_federated.federation.partition import METHODS
from nnunetv2_federated.federation.text import clean

_LONGEST = 4000
"""Characters of a line: a path may be long, and an error may name many sites."""


def add_partition_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how cases are dealt to sites."""
    group = parser.add_argument_group("sites")
    add = group.add_argument
    add("--sites", type=int, metavar="N", help="number of sites (default 3)")
    add(
        "--partition",
        choices=METHODS,
        help="how cases are dealt to sites: hybrid (default) gives every site a stratified share "
        "of each class and spreads the rest by Dirichlet(alpha); column takes the sites from --by",
    )
    add("--alpha", type=float, help="Dirichlet concentration; smaller is more uneven (default 0.5)")
    add(
        "--stratified-fraction",
        type=float,
        metavar="SHARE",
        help="share of each class that hybrid deals evenly (default 0.3)",
    )
    add("--min-cases", type=int, metavar="N", help="fewest cases of a site (default 1)")
    add(
        "--case-table",
        type=Path,
        metavar="CSV",
        help="table with a column 'case' and the one named by --by; a column 'patient' keeps a "
        "patient's cases at one site",
    )
    add(
        "--by",
        metavar="COLUMN",
        help="column of the table that holds the class of a case; for --partition column, its site",
    )
    add("--seed", type=int, help="of the partition, the sampling of sites and the training (12345)")


def fold_number(text: str) -> int | str:
    """Read ``FOLD``: a whole number, or ``all``.

    Raises
    ------
    SettingsError
        If it is neither.
    """
    return check_fold(int(text) if text.isdecimal() and len(text) < 9 else text)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> Options:
    """Read flags and the settings file named by ``--settings``; flags win."""
    flags = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None}
    if "settings" not in flags:
        return flags
    names = {a.dest for a in parser._actions if a.option_strings}  # no other way
    content = read_settings_file(
        flags["settings"],
        names - {"help", "settings"},
        tables=parser.get_default("tables") or (),
        reduced=bool(flags.get("reduced")),
    )
    return {**content, **flags}


def read_settings_file(
    path: Path, known: set[str], *, tables: Collection[str] = (), reduced: bool = False
) -> Options:
    """Read a TOML file whose keys are flags, spelled with underscores.

    Parameters
    ----------
    path
        To read.
    known
        Keys that are allowed.
    tables
        Tables that are allowed besides, not looked into.
    reduced
        Let the table ``reduced`` of the file replace what it names.

    Raises
    ------
    SettingsError
        If it cannot be read, or a key is no flag.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"--settings {path} cannot be read: {error}") from error
    less = content.pop("reduced", None)
    if reduced:
        if not isinstance(less, dict):
            raise SettingsError(f"--reduced: {path} has no table [reduced] that says what that is.")
        content = _overlaid(content, less)
    for key in content:
        if key not in known and not (key in tables and isinstance(content[key], dict)):
            raise SettingsError(
                f"--settings {path}: {key} is unknown; known are {', '.join(sorted(known))}."
            )
    for key in ("case_table", "sites_file", "credentials", "superlink_database"):
        if key in content:
            content[key] = path.parent / content[key]
    return content


def _overlaid(content: Mapping[str, Any], over: Mapping[str, Any]) -> Options:
    """Replace values, table by table."""
    merged = dict(content)
    for key, value in over.items():
        below = content.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        merged[key] = _overlaid(below or {}, value) if both else value
    return merged


def run_command(command: Callable[[], None]) -> None:
    """Run a command; bad input is one line and exit status 2, a failed run status 1."""
    try:
        command()
    except FederationError as error:
        print(f"error: {clean(error, _LONGEST)}", file=sys.stderr)
        bad_input = isinstance(error, SettingsError | CheckpointError)
        raise SystemExit(2 if bad_input else 1) from None
    except OSError as error:
        if error.errno not in NO_ROOM | NOT_ALLOWED:
            raise
        print(f"error: {_refused(error)}", file=sys.stderr)
        raise SystemExit(1 if error.errno in NO_ROOM else 2) from None


def _refused(error: OSError) -> str:
    """Say in one line what a disk refused, where, and what to do."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in NO_ROOM:
        remedy = "make room, then give the same command again (a training with --c)"
        return clean(f"{where}{error.strerror}: {remedy}; what was finished is whole", _LONGEST)
    return clean(
        f"{where}{error.strerror}: let this user read and write there, or choose another folder",
        _LONGEST,
    )
