"""Deal the cases of a preprocessed dataset to sites, and save who has which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_federated.experiment.choices import PartitionChoices
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.partition import PartitionSettings, Sites
from nnunetv2_federated.nnunet.data.dataset import Dataset, load_dataset
from nnunetv2_federated.nnunet.data.site_cases import (
    count_classes,
    partition_dataset,
    save_partition,
)
from nnunetv2_federated.report.partition import partition_table, plot_partition


@dataclass(frozen=True)
class Partition:
    """A saved partition; trainings of the dataset take it unless they are told otherwise."""

    sites: Sites
    """Cases of each site, by its name."""
    counts: Mapping[str, Mapping[str, int]]
    """Number of cases by site and class."""
    path: Path
    """JSON file that has the sites."""
    chart: Path
    """PNG of the numbers of cases by site and class."""

    @property
    def table(self) -> str:
        """Numbers of cases by site and class, as text in columns."""
        return partition_table(self.counts)


def partition(choices: PartitionChoices) -> Partition:
    """Deal a dataset's cases to sites, save the partition beside it, and draw it.

    Parameters
    ----------
    choices
        Dataset, and how to deal its cases.

    Raises
    ------
    SettingsError
        If the dataset is not preprocessed, or cannot be dealt as chosen.
    """
    dataset = load_dataset(choices.dataset, choices.plans)
    configuration = choices.configuration or _first_preprocessed(dataset)
    settings = choices.part(PartitionSettings)
    sites, classes = partition_dataset(
        dataset, configuration, settings, choices.case_table, choices.by
    )
    counts = count_classes(sites, classes)
    path = save_partition(dataset, sites)
    chart = path.with_suffix(".png")
    plot_partition(counts, chart, f"{dataset.name}: {settings.method} partition")
    return Partition(sites, counts, path, chart)


def _first_preprocessed(dataset: Dataset) -> str:
    configurations: Mapping[str, Mapping[str, str]] = dataset.plans["configurations"]
    for name, content in configurations.items():
        if (dataset.folder / content.get("data_identifier", name)).is_dir():
            return name
    raise SettingsError(
        f"dataset {dataset.name} is not preprocessed: run nnUNetv2_preprocess -d {dataset.name}."
    )
