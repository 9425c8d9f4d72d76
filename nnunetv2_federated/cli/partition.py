"""``nnUNetv2_partition``: deal a dataset's cases to sites, and look at it, without training."""

from __future__ import annotations

from collections.abc import Sequence

from nnunetv2_federated.cli.command import Command
from nnunetv2_federated.cli.exit_status import run_command
from nnunetv2_federated.cli.flags import build_parser
from nnunetv2_federated.experiment.choices import PartitionChoices

DESCRIPTION = """Deal the cases of a preprocessed dataset to sites, save the partition for
nnUNetv2_train_federated, and show it as a table and a bar chart."""


def command() -> Command[PartitionChoices]:
    """Return the command line."""
    parser = build_parser(PartitionChoices, "nnUNetv2_partition", DESCRIPTION)
    return Command(PartitionChoices, parser)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    run_command(lambda: _partition(command().parse(argv)))


def _partition(choices: PartitionChoices) -> None:
    # heavy: not for --help
    from nnunetv2_federated.experiment.partition import partition  # noqa: PLC0415

    dealt = partition(choices)
    print(dealt.table)
    print(f"saved {dealt.path}\nchart {dealt.chart}")


if __name__ == "__main__":
    main()
