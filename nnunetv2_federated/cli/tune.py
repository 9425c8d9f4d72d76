"""``nnUNetv2_federated_tune``: settings of a federation, tuned within a budget."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from nnunetv2_federated.cli.command import Command
from nnunetv2_federated.cli.console import say
from nnunetv2_federated.cli.exit_status import run_command
from nnunetv2_federated.cli.flags import build_parser
from nnunetv2_federated.experiment.tune_choices import TuneChoices

DESCRIPTION = """Find settings of a federation with Optuna: many trials begin, each an ordinary
federated training, and only the best get all their rounds. The table [search] of the settings file
says what varies; all else is as in nnUNetv2_train_federated. May be killed at any time: the same
command goes on. Writes best.toml, comparison.toml, report.html and tuning.png into --study."""


def command() -> Command[TuneChoices]:
    """Return the command line; flags of a training are those of ``nnUNetv2_train_federated``."""
    parser = build_parser(
        TuneChoices,
        "nnUNetv2_federated_tune",
        DESCRIPTION,
        usage="%(prog)s DATASET CONFIGURATION FOLD --settings TOML --study FOLDER [flags]",
    )
    return Command(TuneChoices, parser)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command(lambda: _tune(command().parse(argv)))


def _tune(choices: TuneChoices) -> None:
    from nnunetv2_federated.experiment.tune import tune  # noqa: PLC0415  # heavy: not for --help

    def tell(text: str) -> None:
        if not choices.quiet:
            say(text)

    # in the output of a batch job a line a round, too
    result = tune(choices, say=tell, note=_note, say_round=None if sys.stdout.isatty() else tell)
    tell(f"report: {result.report}")
    if result.export is not None:
        tell(f"settings: {result.export}")
    if result.comparison is not None:
        tell(f"to compare with the default: {result.comparison}")


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


if __name__ == "__main__":
    main()
