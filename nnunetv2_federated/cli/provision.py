"""``nnUNetv2_federated_provision``: certificates and keys of a federation."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_federated.cli.options import Options, parse, run_command
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.flower.deployment.address import DEFAULT_PORT, Address
from nnunetv2_federated.flower.deployment.server.credentials import (
    DEFAULT_DAYS,
    fingerprints,
    provision,
    revoke,
)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_federated_provision",
        description="Make a certificate authority, the server's certificate, and a bundle for each "
        "site. Run it again to add sites: what exists is kept.",
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="where everything is kept; keep it secret")
    add(
        "--server",
        metavar="HOST[:PORT]",
        help=f"where the sites will find the server (port {DEFAULT_PORT})",
    )
    add(
        "--public-key",
        type=Path,
        nargs="+",
        default=[],
        metavar="NAME.pub",
        help="of each site, as it made it with nnUNetv2_federated_site --new-key NAME",
    )
    add(
        "--sites",
        nargs="+",
        default=[],
        metavar="NAME",
        help="sites whose key pairs are made here: for a try on one machine",
    )
    add(
        "--revoke",
        nargs="+",
        metavar="NAME",
        help="let the key of these sites in no more, from the next message of a running server on; "
        "a name can get a new key",
    )
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
    run_command(lambda: _run(parse(parser, argv)))


def _run(options: Options) -> None:
    try:
        if "revoke" in options:
            _revoke(options)
        else:
            _provision(options)
    except OSError as error:
        raise SettingsError(f"{options['folder']} cannot be written: {error}") from error


def _revoke(options: Options) -> None:
    for flag in ("server", "public_key", "sites", "renew"):
        if options.get(flag):
            raise SettingsError(
                f"--revoke with --{flag.replace('_', '-')}: one after the other, in two commands."
            )
    for site, mark in revoke(options["folder"], options["revoke"]).items():
        print(f"revoked the key of {site}, {mark}")
    print("a server that runs leaves out whoever has it, from its next message on")


def _provision(options: Options) -> None:
    if "server" not in options:
        raise SettingsError(
            "--server HOST[:PORT] is missing: where will the sites find the server?"
        )
    folder, sites = options["folder"], options["sites"]
    made = provision(
        folder,
        Address.of(options["server"]),
        sites,
        public_keys=options["public_key"],
        days=options["days"],
        renew=options["renew"],
    )
    for path in made:
        print(f"made {path}")
    if not made:
        print("nothing to do: all of this exists already")
    print("\ncompare by telephone with what each site sees (nnUNetv2_federated_site --check):")
    for what, mark in fingerprints(folder).items():
        print(f"  {what}  {mark}")
    print(f"\nkeep {folder / 'ca.key'} offline; give each folder of {folder / 'sites'} to its site")
    if sites:
        print(
            f"the keys of {', '.join(sites)} were made here, for a try on one machine: whoever "
            "reads this folder can take part as them. Hospitals make their own with "
            "nnUNetv2_federated_site --new-key"
        )


if __name__ == "__main__":
    main()
