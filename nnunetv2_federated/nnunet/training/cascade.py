"""The stages of a cascade find each other's files, or it is said before the first iteration.

nnU-Net's full validation of a stage writes what the next one starts from, for the validation cases
of the fold, into ``predicted_next_stage`` of that stage's result folder of the *same dataset*. All
cases have such a prediction once all folds, or fold ``all``, were trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.nnunet.data.dataset import (
    Dataset,
    check_configuration,
    load_dataset,
)
from nnunetv2_federated.nnunet.training.trainer import federated_trainer


def stage_folder(run: Run, dataset: Dataset, configuration: str) -> Path:
    """Where nnU-Net's trainer of a dataset has the results of a stage, beside its folds."""
    name = f"{federated_trainer(run.trainer).__name__}__{dataset.plans['plans_name']}"
    return Path(nnUNet_results.require()) / dataset.name / f"{name}__{configuration}"


def check_stages(run: Run) -> None:
    """Make sure that the run's sites have what the stage before wrote, and can serve the next.

    Raises
    ------
    SettingsError
        If cases have no prediction of the stage before, or are not preprocessed for the next.
    """
    for name in sorted({site.dataset for site in run.sites}):
        dataset = load_dataset(name, run.plans_name)
        manager = PlansManager(dataset.plans).get_configuration(run.configuration)
        for following in manager.next_stage_names or ():
            check_configuration(dataset, following)
        before = manager.previous_stage_name
        if before is None:
            continue
        cases = {
            case
            for site in run.sites
            if site.dataset == name
            for case in (*site.training_cases, *site.validation_cases)
        }
        folder = stage_folder(run, dataset, before) / "predicted_next_stage" / run.configuration
        missing = _missing(folder, sorted(cases))
        if missing:
            raise SettingsError(
                f"{run.configuration}: {len(missing)} of {len(cases)} cases of {name}, such as "
                f"{missing[0]}, have no prediction of {before} in {folder}: train {before} first, "
                "with the same trainer, plans and sites, on fold all or on every fold."
            )


def _missing(folder: Path, cases: Sequence[str]) -> list[str]:
    """Return the cases that no stage has predicted, in the format of newer or older nnU-Net."""
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    endings = (".b2nd", ".npz", ".npy")
    return [case for case in cases if not any(f"{case}{ending}" in found for ending in endings)]
