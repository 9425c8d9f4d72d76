"""The cases of each site in a fold, of one partitioned dataset or of several datasets."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunetv2_federated.federation.case_table import read_case_table, table_column
from nnunetv2_federated.federation.declared import find_difference
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.files import write_atomically
from nnunetv2_federated.federation.partition import (
    PartitionSettings,
    Sites,
    check_sites,
    partition_cases,
)
from nnunetv2_federated.federation.run import SiteCases
from nnunetv2_federated.nnunet.data.dataset import (
    Dataset,
    case_classes,
    check_configuration,
    load_dataset,
    preprocessed_cases,
)
from nnunetv2_federated.nnunet.data.folds import fold_of_site, fold_split, known_patients

SAVED_PARTITION = "federated_sites.json"
"""Sites file of a saved partition, in the preprocessed dataset's folder."""


def partition_dataset(
    dataset: Dataset,
    configuration: str,
    settings: PartitionSettings,
    table: Path | None = None,
    by: str | None = None,
) -> tuple[Sites, dict[str, str]]:
    """Deal all cases of a dataset to sites, the same for every fold.

    Parameters
    ----------
    dataset, configuration
        Dataset and configuration whose preprocessed cases are dealt.
    settings
        Method of the partition and its parameters.
    table
        Case table, a CSV file with a column ``case``; ``None`` for the dataset's own. A column
        ``patient`` keeps all cases of a patient at one site.
    by
        Column of the case table with the class (or, for ``column``, the site) of a case.

    Returns
    -------
    tuple
        Site to cases, and case to class.

    Raises
    ------
    SettingsError
        If the table does not fit, or the partition is impossible.
    """
    cases = preprocessed_cases(check_configuration(dataset, configuration))
    rows = read_case_table(table) if table is not None else {}
    if by is not None and table is None:
        raise SettingsError(f"--by {by}: needs --case-table, the CSV that has this column.")
    if settings.method == "column" and by is None:
        raise SettingsError("--partition column: needs --case-table FILE and --by COLUMN.")
    column = table_column(rows, by) if by is not None else None
    patients = known_patients(dataset, table)
    if settings.method == "column":
        return partition_cases(cases, settings, None, patients, column), column or {}
    classes = column or case_classes(dataset, configuration, cases)
    return partition_cases(cases, settings, classes, patients), classes


def count_classes(sites: Sites, classes: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Count the cases of each class at each site."""
    return {site: dict(Counter(classes[case] for case in cases)) for site, cases in sites.items()}


def read_sites_file(path: Path) -> Sites:
    """Read a sites file, ``{site: [case, ...]}``.

    Raises
    ------
    SettingsError
        If the file is absent or of another form.
    """
    try:
        sites = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"--sites-file {path} cannot be read: {error}") from error
    fits = isinstance(sites, dict) and all(
        isinstance(cases, list) and all(isinstance(case, str) for case in cases)
        for cases in sites.values()
    )
    if not fits:
        raise SettingsError(f"--sites-file {path}: expected {{site: [case, ...], ...}}.")
    return {site: sorted(cases) for site, cases in sites.items()}


def saved_partition(dataset: Dataset) -> Path:
    """Return the file in which ``nnUNetv2_partition`` saves a partition."""
    return dataset.folder / SAVED_PARTITION


def save_partition(dataset: Dataset, sites: Sites) -> Path:
    """Save a partition for later trainings; return its file."""
    path = saved_partition(dataset)
    write_atomically(path, json.dumps(sites, indent=1))
    return path


def sites_of_fold(
    dataset: Dataset, configuration: str, fold: int | str, sites: Sites
) -> tuple[SiteCases, ...]:
    """Return the training and validation cases in a fold of each site of a partition.

    Raises
    ------
    SettingsError
        If a case is unknown or in two sites, or a site has no training case in the fold.
    """
    known = preprocessed_cases(check_configuration(dataset, configuration))
    check_sites(sites, known)
    training, validation = (set(part) for part in fold_split(dataset, configuration, fold))
    return tuple(
        SiteCases(
            site,
            dataset.name,
            tuple(case for case in cases if case in training),
            tuple(case for case in cases if case in validation),
        )
        for site, cases in sorted(sites.items())
    )


def sites_from_datasets(
    names: Sequence[str], configuration: str, fold: int | str, plans: str
) -> tuple[SiteCases, ...]:
    """Return one site for each dataset; channels, labels and plans must agree.

    Raises
    ------
    SettingsError
        If a dataset differs from the first (names both and the field), is named twice, or no site
        has a validation case.
    """
    datasets = [load_dataset(name, plans) for name in names]
    for other in datasets[1:]:
        _check_same(other, datasets[0], plans)
    sites = []
    for dataset in datasets:
        check_configuration(dataset, configuration)
        training, validation = fold_of_site(dataset, configuration, fold)
        sites.append(SiteCases(dataset.name, dataset.name, tuple(training), tuple(validation)))
    if len({site.name for site in sites}) < len(sites):
        raise SettingsError(f"--site-datasets {' '.join(names)}: a dataset is named twice.")
    if not any(site.validation_cases for site in sites):
        raise SettingsError(
            f"fold {fold}: no site has a validation case, each has fewer than the five cases that "
            "nnU-Net's five folds need: use fold all."
        )
    return tuple(sites)


def _check_same(other: Dataset, first: Dataset, plans: str) -> None:
    """Raise ``SettingsError`` unless two datasets declare the same and have the same plans."""
    difference = find_difference(other.declared, first.declared)
    if difference is not None:
        reason = f"; {difference.hint}" if difference.hint else ""
        raise SettingsError(
            f"--site-datasets: {difference.field} of {other.name} is {difference.ours}, of "
            f"{first.name} {difference.theirs}{reason}; they must be the same."
        )
    if other.plans_hash != first.plans_hash:
        raise SettingsError(
            f"--site-datasets: the plans {plans} of {other.name} differ from those of "
            f"{first.name}; all sites need the same (nnUNetv2_move_plans_between_datasets)."
        )
