"""The trained folds that are to be released, found in ``nnUNet_results`` and checked together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_federated.federation.agreement import hash_plans
from nnunetv2_federated.federation.declared import declared_of, find_difference
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.names import check_dataset_name, check_fold, check_name
from nnunetv2_federated.nnunet.data.dataset import check_environment, find_name, read_json
from nnunetv2_federated.nnunet.training.optimizer import SUFFIX


@dataclass(frozen=True)
class FinishedModel:
    """Trained folds of one or more configurations, as nnU-Net's own export takes them."""

    dataset: str
    trainer: str
    """Trainer in the names of the folders."""
    plans_name: str
    configurations: tuple[str, ...]
    folds: tuple[int | str, ...]
    checkpoints: tuple[str, ...]
    """File names of the checkpoints, the first the one that others use."""

    @property
    def results(self) -> Path:
        """Folder of the dataset in ``nnUNet_results``."""
        return Path(nnUNet_results.require()) / self.dataset

    def name_of(self, configuration: str) -> str:
        """Return the name of a configuration's folder."""
        return f"{self.trainer}__{self.plans_name}__{configuration}"

    def folder(self, configuration: str) -> Path:
        """Return the folder of a configuration."""
        return self.results / self.name_of(configuration)

    def fold_folders(self) -> Iterator[tuple[str, int | str, Path]]:
        """Yield configuration, fold and folder of all folds."""
        for configuration in self.configurations:
            for fold in self.folds:
                yield configuration, fold, self.folder(configuration) / f"fold_{fold}"

    def plans(self, configuration: str) -> dict[str, Any]:
        """Return the plans that a configuration was trained with."""
        return dict(read_json(self.folder(configuration) / "plans.json"))

    def dataset_json(self, configuration: str) -> dict[str, Any]:
        """Return the ``dataset.json`` that a configuration was trained with."""
        return dict(read_json(self.folder(configuration) / "dataset.json"))

    @property
    def plans_hash(self) -> str:
        """SHA-256 of the plans of the first configuration, without the name of the dataset."""
        return hash_plans(self.plans(self.configurations[0]))


def find_finished_model(
    dataset: str,
    configurations: Sequence[str],
    folds: Sequence[int | str],
    *,
    trainer: str | None = None,
    plans: str = "nnUNetPlans",
    checkpoints: Sequence[str] = ("checkpoint_final.pth",),
) -> FinishedModel:
    """Find trained folds, and check that they can be released together.

    Parameters
    ----------
    dataset
        Id or name of the dataset.
    configurations, folds
        What was trained.
    trainer
        Trainer as ``-tr``, or its federated sibling; ``None`` for the only one that has trained.
    plans
        Name of the plans.
    checkpoints
        File names of the checkpoints to release.

    Raises
    ------
    SettingsError
        If a fold or one of its checkpoints is not there, a configuration needs another one, or
        configurations differ in their channels, labels or plans.
    """
    check_environment(nnUNet_results)
    _check_spelling(configurations, folds, plans, checkpoints)
    name = find_name(dataset)
    if name is None or not (Path(nnUNet_results.require()) / name).is_dir():
        raise SettingsError(
            f"dataset {dataset}: nnUNet_results ({nnUNet_results.get()}) has no model of it; give "
            "the id or name of a dataset that was trained on."
        )
    model = FinishedModel(
        dataset=check_dataset_name(name),
        trainer=_trainer(Path(nnUNet_results.require()) / name, trainer, plans, configurations[0]),
        plans_name=plans,
        configurations=tuple(configurations),
        folds=tuple(folds),
        checkpoints=tuple(checkpoints),
    )
    _check_files(model)
    _check_same(model)
    return model


def _check_spelling(
    configurations: Sequence[str],
    folds: Sequence[int | str],
    plans: str,
    checkpoints: Sequence[str],
) -> None:
    for flag, names in (("-c", configurations), ("-p", [plans]), ("-chk", checkpoints)):
        for name in names:
            check_name(flag, name)
    for fold in folds:
        check_fold(fold)
    for flag, given in (("-c", configurations), ("-f", folds), ("-chk", checkpoints)):
        if not given or len(set(given)) < len(given):
            raise SettingsError(f"{flag} {' '.join(map(str, given))}: give each once, or one.")
    for name in checkpoints:
        if not name.endswith(".pth"):
            raise SettingsError(f"-chk {name}: give the file name, such as checkpoint_final.pth.")


def _trainer(results: Path, trainer: str | None, plans: str, configuration: str) -> str:
    """Return the trainer in the name of a configuration's folder."""
    end = f"__{plans}__{configuration}"
    if trainer is not None:
        check_name("-tr", trainer)
        sibling = trainer.removesuffix(SUFFIX) + SUFFIX
        for name in (trainer, sibling):
            if (results / f"{name}{end}").is_dir():
                return name
        raise SettingsError(
            f"{results / f'{trainer}{end}'} does not exist: {trainer} has trained no "
            f"{configuration} of {results.name} with {plans}; train first, or change -tr, -c or -p."
        )
    found = sorted(path.name.removesuffix(end) for path in results.glob(f"*{end}"))
    if len(found) == 1:
        return found[0]
    raise SettingsError(
        f"-c {configuration}: "
        + (
            f"{', '.join(found)} have trained it; say with -tr which."
            if found
            else f"{results} has no model of it with {plans}; train first, or change -c or -p."
        )
    )


def _check_files(model: FinishedModel) -> None:
    for configuration in model.configurations:
        for name in ("plans.json", "dataset.json"):
            if not (model.folder(configuration) / name).is_file():
                raise SettingsError(
                    f"-c {configuration}: {model.folder(configuration) / name} does not exist: "
                    "train it first, or leave it out of -c."
                )
    for configuration, fold, folder in model.fold_folders():
        for name in model.checkpoints:
            if not (folder / name).is_file():
                raise SettingsError(
                    f"-c {configuration} -f {fold}: {folder / name} does not exist: train this "
                    "fold to its end, or leave it out of -f."
                )


def _check_same(model: FinishedModel) -> None:
    """Refuse configurations that cannot be used together."""
    first, *others = model.configurations
    declared = declared_of(model.dataset_json(first))
    for configuration in others:
        theirs = declared_of(model.dataset_json(configuration))
        different = find_difference(declared, theirs)
        if different is not None:
            raise SettingsError(
                f"-c {configuration}: was trained with other {different.field} than {first}: "
                "release it on its own."
            )
    for configuration in model.configurations:
        plans = model.plans(configuration)
        if configuration not in plans.get("configurations", {}):
            raise SettingsError(
                f"-c {configuration}: the plans in {model.folder(configuration)} do not have it: "
                "restore them, or train again."
            )
        if hash_plans(plans) != model.plans_hash:
            raise SettingsError(
                f"-c {configuration}: was trained with other plans than {first}, although both are "
                f"called {model.plans_name}: release it on its own."
            )
        needed = PlansManager(plans).get_configuration(configuration).previous_stage_name
        if needed is not None and needed not in model.configurations:
            raise SettingsError(
                f"-c {configuration}: predicts from what {needed} predicts: add {needed} to -c."
            )
