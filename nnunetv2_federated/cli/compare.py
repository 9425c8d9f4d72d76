"""``nnUNetv2_federated_compare``: local, federated and centralised side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from nnunetv2_federated.cli.command import Command, Values
from nnunetv2_federated.cli.console import say
from nnunetv2_federated.cli.exit_status import run_command
from nnunetv2_federated.cli.flags import build_parser
from nnunetv2_federated.experiment.choices import CompareChoices
from nnunetv2_federated.federation.errors import SettingsError

DESCRIPTION = """Train each site alone, the federation, and one model on all cases, with the same
steps, seeds and data; test every model at every site; write report.html, report.md and PNGs. May be
killed at any time: the same command continues. In a settings file, the tables [centralised],
[local] and [federated.NAME] change one kind of arm."""

WITHOUT = ("dataset", "configuration", "folds", "sites on other machines")
"""Fields that this command takes without flags, and a group that it does not have."""


def command() -> Command[CompareChoices]:
    """Return the command line; flags of a training are those of ``nnUNetv2_train_federated``."""
    parser = build_parser(
        CompareChoices,
        "nnUNetv2_federated_compare",
        DESCRIPTION,
        usage="%(prog)s DATASET CONFIGURATION FOLD [FOLD ...] [flags]",
        without=WITHOUT,
    )
    parser.add_argument("target", nargs="*", metavar="DATASET CONFIGURATION FOLD [FOLD ...]")
    return Command(CompareChoices, parser, without=WITHOUT, complete=_read_target)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command(lambda: _compare(command().parse(argv)))


def _read_target(values: Values) -> Values:
    """Split the positional arguments into dataset, configuration and folds."""
    values = dict(values)
    target = values.pop("target", [])
    if len(target) < 3:
        raise SettingsError(
            f"expected DATASET CONFIGURATION FOLD, got {' '.join(target) or 'nothing'}; "
            "for example: nnUNetv2_federated_compare 501 2d 0"
        )
    dataset, configuration, *folds = target
    return values | {"dataset": dataset, "configuration": configuration, "folds": folds}


def _compare(choices: CompareChoices) -> None:
    from nnunetv2_federated.experiment.compare import compare  # noqa: PLC0415  # not for --help

    def tell(text: str) -> None:
        if not choices.quiet:
            say(text)

    # in the output of a batch job a line a round, too
    say_round = None if sys.stdout.isatty() else tell
    result = compare(choices, say=tell, note=_note, say_round=say_round)
    if result.failed:
        print(
            f"error: {result.failed} of {result.models} models failed, see the report; the same "
            "command tries them again",
            file=sys.stderr,
        )
        raise SystemExit(1)


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


if __name__ == "__main__":
    main()
