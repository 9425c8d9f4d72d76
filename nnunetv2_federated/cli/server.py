"""``nnUNetv2_federated_server``: the coordinator's side of a federation over a network."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_federated.cli.command import Command, Values
from nnunetv2_federated.cli.exit_status import run_command
from nnunetv2_federated.cli.flags import build_parser
from nnunetv2_federated.cli.train import first_of_queue, of_queue, train
from nnunetv2_federated.experiment.choices import DEFAULT_CREDENTIALS, TrainChoices
from nnunetv2_federated.federation.errors import SettingsError

DESCRIPTION = """Run a federation whose sites are on other machines, as its settings file says:
start the server, let the sites in, train, write the result, stop the server."""

WITHOUT = ("sites", "sites that exist already", "runtime")
"""Groups of fields that are about sites on this machine."""


def command() -> Command[TrainChoices]:
    """Return the command line; its flags are those of ``nnUNetv2_train_federated``."""
    parser = build_parser(TrainChoices, "nnUNetv2_federated_server", DESCRIPTION, without=WITHOUT)
    return Command(TrainChoices, parser, without=WITHOUT, complete=_complete)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command(lambda: train(command().parse(argv)))


def _complete(values: Values) -> Values:
    """Add the address that the credentials were made for, if no other is chosen."""
    if of_queue(values):
        values = values | first_of_queue(values)
    for name in ("dataset", "configuration", "fold"):
        if name not in values:
            raise SettingsError(f"--{name} is missing: give it here or in the settings file.")
    if "server" in values:
        return values
    return values | {"server": _provisioned(Path(values.get("credentials", DEFAULT_CREDENTIALS)))}


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
