"""The predictions of validation cases that trainings on this machine have left, by site."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    files: dict[str, dict[str, dict[str, Path]]] = {}
    datasets: dict[str, str] = {}
    for configuration in configurations:
        for fold in models.folds:
            run = read_trained(models, configuration, fold)
            if run.remote_sites:
                raise SettingsError(
                    f"{configuration} fold {fold} was trained with sites on other machines, which "
                    "have its predictions: add --server."
                )
            for site in run.sites:
                if datasets.setdefault(site.name, site.dataset) != site.dataset:
                    raise SettingsError(f"site {site.name} is of another dataset in fold {fold}.")
                of_site = files.setdefault(site.name, {}).setdefault(configuration, {})
                for case in site.validation_cases:
                    if case in of_site:
                        raise SettingsError(
                            f"-f {' '.join(map(str, models.folds))}: case {case} is validated in "
                            "more than one of these folds; leave some out."
                        )
                    of_site[case] = _predicted(run, models, site.dataset, case)
    ending = str(models.dataset_json["file_ending"])
    for name, by_configuration in files.items():
        if len({frozenset(cases) for cases in by_configuration.values()}) > 1:
            raise SettingsError(
                f"site {name} has other validation cases in {' and '.join(by_configuration)}: "
                "train all configurations on the same folds and sites."
            )
    _check_files(files, ending, ensembles=ensembles)
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


def _check_files(
    files: dict[str, dict[str, dict[str, Path]]], ending: str, *, ensembles: bool
) -> None:
    predicted = [
        path
        for by_configuration in files.values()
        for cases in by_configuration.values()
        for path in cases.values()
    ]
    missing = [path for path in predicted if not path.is_file()]
    if missing:
        raise SettingsError(
            f"{len(missing)} of {len(predicted)} validation cases have no prediction, such as "
            f"{missing[0]}: validate again (nnUNetv2_train_federated ... --val)."
        )
    if not ensembles:
        return
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
