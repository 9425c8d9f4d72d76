"""The predictions of validation cases that trainings on this machine have left, by site."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.run import RUN_FILE, Run, read_run
from nnunetv2_federated.federation.text import few
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.evaluation.best_files import Models
from nnunetv2_federated.nnunet.evaluation.site_predictions import (
    SitePredictions,
    probabilities_of,
)

Files = dict[str, dict[str, dict[str, Path]]]
"""Segmentations by site, configuration and case."""


def find_predictions(
    models: Models, configurations: Sequence[str], *, ensembles: bool
) -> list[SitePredictions]:
    """Find the prediction of each validation case of each site, of all folds.

    Parameters
    ----------
    models
        Trained models.
    configurations
        Configurations to find predictions of.
    ensembles
        Whether softmax outputs are needed, too.

    Raises
    ------
    SettingsError
        If a fold is not trained, or a prediction is missing.
    """
    files: Files = {}
    datasets: dict[str, str] = {}
    for configuration, fold in itertools.product(configurations, models.folds):
        run = read_trained(models, configuration, fold)
        if run.remote_sites:
            raise SettingsError(
                f"{configuration} fold {fold} was trained with sites on other machines, which "
                "have its predictions: add --server."
            )
        _add(files, run, models)
        for site in run.sites:
            if datasets.setdefault(site.name, site.dataset) != site.dataset:
                raise SettingsError(f"site {site.name} is of another dataset in fold {fold}.")
    _check_same_cases(files)
    _check_files(files, str(models.dataset_json["file_ending"]), ensembles=ensembles)
    return [
        SitePredictions(
            site,
            by_configuration,
            load_dataset(datasets[site], models.plans_name).folder / "gt_segmentations",
            models.plans,
            models.dataset_json,
        )
        for site, by_configuration in sorted(files.items())
    ]


def _add(files: Files, run: Run, models: Models) -> None:
    """Add the predictions of a fold."""
    for site in run.sites:
        of_site = files.setdefault(site.name, {}).setdefault(run.configuration, {})
        for case in site.validation_cases:
            if case in of_site:
                raise SettingsError(
                    f"-f {' '.join(map(str, models.folds))}: case {case} is validated in more than "
                    "one of these folds; leave some out."
                )
            of_site[case] = _predicted(run, models, site.dataset, case)


def _check_same_cases(files: Files) -> None:
    for name, by_configuration in files.items():
        if len({frozenset(cases) for cases in by_configuration.values()}) > 1:
            raise SettingsError(
                f"site {name} has other validation cases in {' and '.join(by_configuration)}: "
                "train all configurations on the same folds and sites."
            )


def read_trained(models: Models, configuration: str, fold: int | str) -> Run:
    """Return the run of a trained fold.

    Raises
    ------
    SettingsError
        If no federation has trained it.
    """
    folder = models.folder(configuration) / f"fold_{fold}"
    if not (folder / "federation" / RUN_FILE).is_file():
        raise SettingsError(
            f"{configuration} fold {fold} was not trained by a federation: {folder} has no run; "
            f"nnUNetv2_train_federated {models.dataset} -c {configuration} -f {fold} trains it."
        )
    return read_run(folder / "federation")


def _predicted(run: Run, models: Models, dataset: str, case: str) -> Path:
    """Return where :func:`.validation.validate` has put a case's segmentation."""
    folder = models.folder(run.configuration) / f"fold_{run.fold}" / "validation"
    if any(site.dataset != run.dataset for site in run.sites):
        folder = folder / dataset
    return folder / (case + str(models.dataset_json["file_ending"]))


def _paths(of_site: Mapping[str, Mapping[str, Path]]) -> list[Path]:
    return [path for found in of_site.values() for path in found.values()]


def _check_files(files: Files, ending: str, *, ensembles: bool) -> None:
    predicted = [path for of_site in files.values() for path in _paths(of_site)]
    missing = [path for path in predicted if not path.is_file()]
    if missing:
        raise SettingsError(
            f"{len(missing)} of {len(predicted)} validation cases have no prediction, such as "
            f"{missing[0]}: validate again (nnUNetv2_train_federated ... --val)."
        )
    if ensembles:
        _check_probabilities(predicted, ending)


def _check_probabilities(predicted: Sequence[Path], ending: str) -> None:
    lacking = [path for path in predicted if not probabilities_of(path, ending).is_file()]
    if lacking:
        folders = sorted({str(path.parent) for path in lacking})
        raise SettingsError(
            f"no softmax outputs in {few(folders)}: ensembles need them; validate again with "
            "--val --npz, or choose --disable_ensembling."
        )


def large_enough(
    sites: Sequence[SitePredictions], fewest: int, say: Callable[[str], None]
) -> list[SitePredictions]:
    """Return the sites with enough validation cases; name the others.

    Raises
    ------
    SettingsError
        If no site has enough.
    """
    counts = {site.site: len(next(iter(site.files.values()))) for site in sites}
    for name, count in counts.items():
        if count < fewest:
            say(f"{name} is left out: it has {count} validation cases, --min-cases is {fewest}")
    kept = [site for site in sites if counts[site.site] >= fewest]
    if not kept:
        raise SettingsError(
            f"--min-cases {fewest}: no site has so many validation cases; the largest has "
            f"{max(counts.values())}."
        )
    return kept
