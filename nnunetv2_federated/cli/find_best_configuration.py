"""``nnUNetv2_find_best_configuration_federated``."""

from __future__ import annotations

from collections.abc import Sequence

from nnunetv2_federated.cli.command import Command
from nnunetv2_federated.cli.console import say
from nnunetv2_federated.cli.exit_status import run_command
from nnunetv2_federated.cli.flags import build_parser
from nnunetv2_federated.experiment.choices import BestChoices

DESCRIPTION = """Choose the best configuration, or ensemble of two, and its postprocessing, as
nnUNetv2_find_best_configuration does, from means that each site takes over its own validation
cases. Writes nnU-Net's own files, without predictions and without a word on single cases."""


def command() -> Command[BestChoices]:
    """Return the command line."""
    parser = build_parser(BestChoices, "nnUNetv2_find_best_configuration_federated", DESCRIPTION)
    return Command(BestChoices, parser)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command(lambda: _find(command().parse(argv)))


def _find(choices: BestChoices) -> None:
    # heavy: not for --help
    from nnunetv2_federated.experiment.best_configuration import (  # noqa: PLC0415
        find_best_configuration,
    )

    def tell(line: str) -> None:
        if not choices.quiet:
            say(line)

    chosen = find_best_configuration(choices, tell)
    tell(f"chosen: {' and '.join(chosen.best.chosen.configurations)}")
    for line in chosen.instructions.read_text().splitlines():
        if line.strip():
            tell(line)
    print(f"result: {chosen.information}")


if __name__ == "__main__":
    main()
