"""``nnUNetv2_federated_provision``: certificates and keys of a federation."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_federated.cli.options import Options, parse, run_command
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.flower.deployment.credentials import (
    DEFAULT_DAYS,
    DEFAULT_PORT,
    Address,
    provision,
)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_federated_provision",
        description="Make a certificate authority, the server's certificate, and a bundle with a "
        "key pair for each site. Run it again to add sites: what exists is kept.",
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="where everything is kept; keep it secret")
    add(
        "--server",
        required=True,
        metavar="HOST[:PORT]",
        help=f"where the sites will find the server (port {DEFAULT_PORT})",
    )
    add("--sites", nargs="+", default=[], metavar="NAME", help="of each site")
    add(
        "--days",
        type=int,
        default=DEFAULT_DAYS,
        metavar="N",
        help=f"how long the server's certificate is valid ({DEFAULT_DAYS})",
    )
    add("--renew", action="store_true", help="make a new server certificate; sites keep theirs")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = build_parser()
    run_command(lambda: _provision(parse(parser, argv)))


def _provision(options: Options) -> None:
    folder = options["folder"]
    address = Address.of(options["server"])
    try:
        made = provision(
            folder, address, options["sites"], days=options["days"], renew=options["renew"]
        )
    except OSError as error:
        raise SettingsError(f"{folder} cannot be written: {error}") from error
    for path in made:
        print(f"made {path}")
    if not made:
        print("nothing to do: all of this exists already")
    print(f"keep {folder / 'ca.key'} offline; give each folder of {folder / 'sites'} to its site")
    print("only, over a channel that keeps it secret")


if __name__ == "__main__":
    main()
