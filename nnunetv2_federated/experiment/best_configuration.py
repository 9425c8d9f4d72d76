"""Choose the best configuration or ensemble and its postprocessing, of what was trained here."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.configuration import default_num_processes
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_federated.experiment.choices import BestChoices
from nnunetv2_federated.federation.best_configuration import (
    METRIC,
    Best,
    Candidate,
    Summary,
    choose_best,
)
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.run import RUN_FILE, Run, read_run
from nnunetv2_federated.federation.text import few
from nnunetv2_federated.nnunet.data.dataset import Dataset, find_trainer, load_dataset
from nnunetv2_federated.nnunet.evaluation.best_files import Models, write_choice
from nnunetv2_federated.nnunet.evaluation.site_predictions import (
    SitePredictions,
    Starmap,
    classes_of,
    labels_of,
    probabilities_of,
)
from nnunetv2_federated.nnunet.evaluation.tester import validates_segmentations
from nnunetv2_federated.nnunet.process import prepare_process
from nnunetv2_federated.nnunet.summary import pool_sites
from nnunetv2_federated.nnunet.training.optimizer import SUFFIX
from nnunetv2_federated.nnunet.training.trainer import federated_trainer


@dataclass(frozen=True)
class Chosen:
    """The best configuration, and where it is written."""

    best: Best
    information: Path
    """nnU-Net's ``inference_information.json``."""
    instructions: Path
    """nnU-Net's ``inference_instructions.txt``: the commands that predict with what was chosen."""


def find_best_configuration(choices: BestChoices, say: Callable[[str], None]) -> Chosen:
    """Choose by nnU-Net's rules, on means that each site takes over its own validation cases.

    Parameters
    ----------
    choices
        Trained configurations and folds.
    say
        Receives what happens, one line each.

    Raises
    ------
    SettingsError
        If a fold is not trained and validated, or predictions are missing; nothing is written.
    """
    prepare_process()
    dataset = load_dataset(choices.dataset, choices.plans)
    if not validates_segmentations(find_trainer(choices.trainer.removesuffix(SUFFIX))):
        raise SettingsError(f"-tr {choices.trainer}: only segmentations are chosen from.")
    models = Models(
        dataset.name,
        federated_trainer(choices.trainer).__name__,
        choices.plans,
        choices.folds,
        dataset.plans,
        dataset.dataset_json,
    )
    configurations = choices.configurations or _trained(models, dataset)
    _check_once(configurations, choices.folds)
    ensembles = len(configurations) > 1 and not choices.disable_ensembling
    sites = _predictions(models, configurations, choices.plans, ensembles=ensembles)
    sites = _large_enough(sites, choices.min_cases, say)
    manager = PlansManager(dict(dataset.plans)).get_label_manager(dict(dataset.dataset_json))
    classes = classes_of(manager)
    with multiprocessing.get_context("spawn").Pool(default_num_processes) as pool:
        best = choose_best(
            configurations,
            {str(label): labels_of(label) for label in classes},
            tuple(int(label) for label in manager.foreground_labels),
            lambda candidate: _score(sites, candidate, pool.starmap, models, say),
            ensembles=ensembles,
        )
    information = write_choice(models, best, classes, ensembles=ensembles)
    return Chosen(best, information, information.with_name("inference_instructions.txt"))


def _check_once(configurations: Sequence[str], folds: Sequence[object]) -> None:
    for flag, values in (("-c", configurations), ("-f", folds)):
        if not values or len(set(values)) < len(values):
            shown = " ".join(map(str, values))
            raise SettingsError(f"{flag} {shown}: name each once, and at least one.")


def _trained(models: Models, dataset: Dataset) -> tuple[str, ...]:
    """Return the configurations of the plans that have a result folder."""
    names = PlansManager(dict(dataset.plans)).available_configurations
    found = tuple(name for name in names if models.folder(name).is_dir())
    if not found:
        raise SettingsError(
            f"no configuration of {models.dataset} was trained with {models.trainer} and "
            f"{models.plans_name}: nnUNetv2_train_federated trains, -tr and -p say with what."
        )
    return found


def _predictions(
    models: Models, configurations: Sequence[str], plans: str, *, ensembles: bool
) -> list[SitePredictions]:
    """Find the prediction of each validation case of each site, of all folds."""
    files: dict[str, dict[str, dict[str, Path]]] = {}
    datasets: dict[str, str] = {}
    for configuration in configurations:
        for fold in models.folds:
            run = _run(models, configuration, fold)
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
            load_dataset(datasets[site], plans).folder / "gt_segmentations",
            models.plans,
            models.dataset_json,
        )
        for site, by_configuration in sorted(files.items())
    ]


def _run(models: Models, configuration: str, fold: int | str) -> Run:
    folder = models.folder(configuration) / f"fold_{fold}"
    if not (folder / "federation" / RUN_FILE).is_file():
        raise SettingsError(
            f"{configuration} fold {fold} was not trained by a federation: {folder} has no run; "
            f"nnUNetv2_train_federated {models.dataset} -c {configuration} -f {fold} trains it."
        )
    run = read_run(folder / "federation")
    if run.remote_sites:
        raise SettingsError(
            f"{configuration} fold {fold} was trained with sites on other machines, which have its "
            "predictions: this command chooses from what was trained on this machine."
        )
    return run


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


def _large_enough(
    sites: Sequence[SitePredictions], fewest: int, say: Callable[[str], None]
) -> list[SitePredictions]:
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


def _score(
    sites: Sequence[SitePredictions],
    candidate: Candidate,
    starmap: Starmap,
    models: Models,
    say: Callable[[str], None],
) -> Summary:
    summary = pool_sites([site.score(candidate, starmap) for site in sites])
    say(f"{_describe(candidate, models)}: {METRIC} {summary['foreground_mean'][METRIC]:.4f}")
    return summary


def _describe(candidate: Candidate, models: Models) -> str:
    name = models.name(candidate.configurations)
    kept = "; ".join(" ".join(map(str, labels)) for labels in candidate.removals)
    return f"{name}, largest component of {kept}" if kept else name
