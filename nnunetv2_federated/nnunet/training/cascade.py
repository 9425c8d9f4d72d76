"""Check before the training that the stages of a cascade will find each other's files.

nnU-Net's full validation of a stage writes the predictions from which the next stage starts, for
the validation cases of the fold, into ``predicted_next_stage`` of that stage's result folder of the
*same dataset*. All cases have such a prediction once all folds, or fold ``all``, were trained.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
    """Return the folder in which a dataset's trainer has the results of a stage, for all folds."""
    name = f"{federated_trainer(run.trainer).__name__}__{dataset.plans['plans_name']}"
    return Path(nnUNet_results.require()) / dataset.name / f"{name}__{configuration}"


def check_stages(run: Run, coming: Mapping[str, Collection[str]] | None = None) -> None:
    """Make sure that the sites have the predictions of the stage before, and can start the next.

    Parameters
    ----------
    run
        Run to train.
    coming
        Cases that trainings of the stage before will have predicted by then, by dataset.

    Raises
    ------
    SettingsError
        If cases have no prediction of the stage before, or are not preprocessed for the next stage.
    """
    for name in sorted({site.dataset for site in run.sites}):
        dataset = load_dataset(name, run.plans_name)
        manager = PlansManager(dataset.plans).get_configuration(run.configuration)
        for following in manager.next_stage_names or ():
            check_configuration(dataset, following)
        before = manager.previous_stage_name
        if before is None:
            continue
        cases = _cases(run, name)
        folder = stage_folder(run, dataset, before) / "predicted_next_stage" / run.configuration
        missing = _missing(folder, sorted(cases - set((coming or {}).get(name, ()))))
        if missing:
            raise SettingsError(
                f"{run.configuration}: {len(missing)} of {len(cases)} cases of {name}, such as "
                f"{missing[0]}, have no prediction of {before} in {folder}: train {before} first, "
                "with the same trainer, plans and sites, on fold all or on every fold."
            )


def _cases(run: Run, dataset: str) -> set[str]:
    """Return the cases of all sites of a dataset."""
    sites = [site for site in run.sites if site.dataset == dataset]
    return {case for site in sites for case in (*site.training_cases, *site.validation_cases)}


def _missing(folder: Path, cases: Sequence[str]) -> list[str]:
    """Return the cases without a prediction, in the format of newer or older nnU-Net."""
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    endings = (".b2nd", ".npz", ".npy")
    return [case for case in cases if not any(f"{case}{ending}" in present for ending in endings)]
