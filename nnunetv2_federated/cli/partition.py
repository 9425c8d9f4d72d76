"""``nnUNetv2_partition``: deal a dataset's cases to sites, and look at it, without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunetv2_federated.cli.command import Command
from nnunetv2_federated.cli.flags import build_parser
from nnunetv2_federated.cli.options import run_command
from nnunetv2_federated.experiment.choices import PartitionChoices
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.partition import PartitionSettings

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
    from nnunetv2_federated.nnunet.data import site_cases  # noqa: PLC0415
    from nnunetv2_federated.nnunet.data.dataset import load_dataset  # noqa: PLC0415
    from nnunetv2_federated.report.partition import partition_table, plot_partition  # noqa: PLC0415

    dataset = load_dataset(choices.dataset, choices.plans)
    configuration = choices.configuration or _first_preprocessed(
        dataset.folder, dataset.plans["configurations"], dataset.name
    )
    settings = choices.part(PartitionSettings)
    sites, classes = site_cases.partition_dataset(
        dataset, configuration, settings, choices.case_table, choices.by
    )
    counts = site_cases.count_classes(sites, classes)
    path = site_cases.save_partition(dataset, sites)
    picture = path.with_suffix(".png")
    plot_partition(counts, picture, f"{dataset.name}: {settings.method} partition")
    print(partition_table(counts))
    print(f"saved {path}\nchart {picture}")


def _first_preprocessed(folder: Path, configurations: dict[str, dict[str, str]], name: str) -> str:
    for configuration, content in configurations.items():
        if (folder / content.get("data_identifier", configuration)).is_dir():
            return configuration
    raise SettingsError(f"dataset {name} is not preprocessed: run nnUNetv2_preprocess -d {name}.")


if __name__ == "__main__":
    main()
