"""``nnUNetv2_partition``: deal a dataset's cases to sites, and look at it, without training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_federated.cli.options import add_partition_flags, parse, run_command
from nnunetv2_federated.experiment.options import Options, partition_settings
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.data.site_cases import (
    count_classes,
    partition_dataset,
    save_partition,
)
from nnunetv2_federated.report.partition import partition_table, plot_partition


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_partition",
        description="Deal the cases of a preprocessed dataset to sites, save the partition for "
        "nnUNetv2_train_federated, and show it as a table and a bar chart.",
    )
    parser.add_argument("dataset", metavar="DATASET", help="dataset id or name")
    parser.add_argument(
        "-c",
        dest="configuration",
        metavar="CONFIGURATION",
        help="whose preprocessed cases are counted (default: the first there is)",
    )
    parser.add_argument("-p", dest="plans", metavar="PLANS", help="plans identifier (nnUNetPlans)")
    parser.add_argument(
        "--settings", type=Path, metavar="TOML", help="file with any of these flags"
    )
    add_partition_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = build_parser()
    run_command(lambda: _partition(parse(parser, argv)))


def _partition(options: Options) -> None:
    dataset = load_dataset(options["dataset"], options.get("plans", "nnUNetPlans"))
    configuration = options.get("configuration") or _first_preprocessed(
        dataset.folder, dataset.plans["configurations"], dataset.name
    )
    settings = partition_settings(options)
    sites, classes = partition_dataset(
        dataset, configuration, settings, options.get("case_table"), options.get("by")
    )
    counts = count_classes(sites, classes)
    path = save_partition(dataset, sites)
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
