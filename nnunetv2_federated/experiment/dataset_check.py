"""Whether a preprocessed dataset agrees with itself, configuration by configuration."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Iterator

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_federated.federation.check import Check, run_check
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.nnunet.data.dataset import Dataset, check_configuration
from nnunetv2_federated.nnunet.data.folds import fold_of_site, read_splits
from nnunetv2_federated.nnunet.data.integrity import inspect
from nnunetv2_federated.nnunet.environment import environment, quiet
from nnunetv2_federated.nnunet.evaluation.tester import validates_segmentations
from nnunetv2_federated.nnunet.training.build_trainer import build_trainer
from nnunetv2_federated.nnunet.training.trainer import FederatedRounds, federated_trainer


def preprocessed_configurations(dataset: Dataset) -> list[str]:
    """Return the configurations of the plans that are preprocessed.

    Raises
    ------
    SettingsError
        If none is.
    """
    plans = PlansManager(dataset.plans)
    found = [
        name
        for name in dataset.plans["configurations"]
        if (dataset.folder / str(plans.get_configuration(name).data_identifier)).is_dir()
    ]
    if not found:
        raise SettingsError(f"{dataset.name} is not preprocessed: run nnUNetv2_preprocess.")
    return found


def usual_trainer(dataset: Dataset, configuration: str) -> str:
    """Return the trainer that a configuration is for, by its network."""
    manager = PlansManager(dataset.plans).get_configuration(configuration)
    classifies = str(manager.network_arch_class_name).startswith("nnunetv2_cls.")
    return "nnUNetTrainerCls" if classifies else "nnUNetTrainerFederated"


def inspect_configuration(
    dataset: Dataset,
    configuration: str,
    fold: int | str | None = None,
    trainer_name: str | None = None,
) -> Iterator[Check]:
    """Compare folds, cases, patients, segmentations and raw data, and build the trainer.

    Parameters
    ----------
    dataset
        Preprocessed dataset.
    configuration
        Configuration of its plans.
    fold
        Fold to check; ``None`` for all there are.
    trainer_name
        Trainer as ``-tr``; ``None`` for the one the configuration's network is for.

    Raises
    ------
    SettingsError
        If the configuration is not preprocessed, or the trainer is unknown.
    """
    check_configuration(dataset, configuration)
    trainer = federated_trainer(trainer_name or usual_trainer(dataset, configuration))
    folds = _all_folds(dataset, configuration) if fold is None else [fold]
    segmentation = validates_segmentations(trainer)
    yield from inspect(dataset, configuration, folds, segmentation=segmentation)
    yield run_check("trainer", functools.partial(_build, dataset, configuration, trainer))


def _all_folds(dataset: Dataset, configuration: str) -> list[int | str]:
    """Return all folds; the first one where they are not known, whose inspection says why."""
    with contextlib.suppress(SettingsError):
        fold_of_site(dataset, configuration, 0)
        return list(range(len(read_splits(dataset))))
    return [0]


def _build(dataset: Dataset, configuration: str, trainer: type[FederatedRounds]) -> str:
    """Build the trainer, which may check more, and leave nothing behind."""
    run = Run(
        dataset=dataset.name,
        configuration=configuration,
        fold="all",
        trainer=trainer.__name__,
        plans_name=dataset.plans["plans_name"],
        device="cpu",
        settings=FederationSettings(),
        sites=(),
    )
    with tempfile.TemporaryDirectory() as scratch, environment(nnUNet_results=scratch), quiet():
        build_trainer(run, dataset, trainer)
    return f"{trainer.__name__} can be built"
