"""``nnUNetv2_federated_server``: the coordinator's side of a federation over a network."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_federated.cli.options import parse, run_command
from nnunetv2_federated.cli.train import train
from nnunetv2_federated.cli.train_flags import (
    add_continue_flags,
    add_deadline_flag,
    add_federation_flags,
    add_network_flags,
    add_nnunet_flags,
)
from nnunetv2_federated.experiment.options import Options
from nnunetv2_federated.experiment.resolve import DEFAULT_CREDENTIALS
from nnunetv2_federated.federation.errors import SettingsError


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; the flags are those of ``nnUNetv2_train_federated``."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_federated_server",
        description="Run a federation whose sites are on other machines, as its settings file "
        "says: start the server, let the sites in, train, write the result, stop the server.",
    )
    add = parser.add_argument_group("what to train").add_argument
    add("--dataset", metavar="DATASET", help="id or name; its plans are here, its images need not")
    add("--configuration", metavar="NAME", help="such as 2d or 3d_fullres")
    add("--fold", metavar="FOLD", help="0 to 4, or all")
    add_nnunet_flags(parser)
    add_continue_flags(parser)
    add_federation_flags(parser)
    add_network_flags(parser)
    add_deadline_flag(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = build_parser()
    run_command(lambda: _serve(parse(parser, argv)))


def _serve(options: Options) -> None:
    for name in ("dataset", "configuration", "fold"):
        if name not in options:
            raise SettingsError(f"--{name} is missing: give it here or in the settings file.")
    options["target"] = [str(options.pop(n)) for n in ("dataset", "configuration", "fold")]
    options.setdefault("server", _provisioned(options.get("credentials", DEFAULT_CREDENTIALS)))
    train(options)


def _provisioned(credentials: Path) -> str:
    """Return the address the credentials were made for."""
    try:
        return str(tomllib.loads((credentials / "server.toml").read_text())["server"])
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise SettingsError(
            f"--credentials {credentials}: no server.toml there ({error}); give the folder "
            "'server' that nnUNetv2_federated_provision made."
        ) from error


if __name__ == "__main__":
    main()
