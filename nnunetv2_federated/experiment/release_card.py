"""Gather the model card of a release from what the trainings have left."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace

from nnunetv2_federated.experiment.release_results import site_scores, validation_scores
from nnunetv2_federated.federation.declared import declared_of
from nnunetv2_federated.federation.history import HISTORY_FILE, read_history
from nnunetv2_federated.federation.model_card import STOCK, FoldRecord, ModelCard, TestResult
from nnunetv2_federated.federation.package_versions import NO_PACKAGE, installed_version
from nnunetv2_federated.federation.run import RUN_FILE, read_run
from nnunetv2_federated.nnunet.release.export import needs
from nnunetv2_federated.nnunet.release.finished_model import FinishedModel

_PACKAGES = ("nnunetv2-federated", "nnunetv2", "torch", "monai", "onnx", "onnxruntime")


def sites_of(model: FinishedModel) -> set[str]:
    """Return the sites that took part in the training of any fold, and their datasets.

    On one machine a site may be called after its dataset.
    """
    names = {model.dataset}
    for *_, folder in model.fold_folders():
        if (folder / HISTORY_FILE).is_file():
            names |= set(read_history(folder).sites)
        if (folder / "federation" / RUN_FILE).is_file():
            names |= {site.dataset for site in read_run(folder / "federation").sites}
    return names


def gather_card(model: FinishedModel, trainer: str, tests: Sequence[TestResult] = ()) -> ModelCard:
    """Describe a model: sites, cases, rounds, promises of privacy, results and software.

    Parameters
    ----------
    model
        Model that is released.
    trainer
        Trainer that its checkpoints name.
    tests
        Results on other cases.

    Raises
    ------
    SettingsError
        If the record of a training cannot be read.
    """
    trained_with: dict[str, str] = {}
    folds = []
    for configuration, fold, folder in model.fold_folders():
        record = FoldRecord(
            configuration=configuration,
            fold=fold,
            validation=validation_scores(folder),
            site_validation=site_scores(folder),
        )
        if (folder / HISTORY_FILE).is_file():
            history = read_history(folder)
            trained_with |= history.versions
            record = replace(
                record,
                rounds=len(history.rounds),
                settings=dict(history.settings),
                sites=dict(history.sites),
            )
        folds.append(record)
    versions = {name: installed_version(name) for name in _PACKAGES}
    lacking = needs(trainer)
    return ModelCard(
        dataset=model.dataset,
        trainer=model.trainer,
        plans_name=model.plans_name,
        plans_hash=model.plans_hash,
        checkpoints=model.checkpoints,
        runs_with=STOCK if lacking is None else f"{STOCK} and {lacking}",
        declared=declared_of(model.dataset_json(model.configurations[0])),
        folds=tuple(folds),
        tests=tuple(tests),
        trained_with=trained_with,
        released_with={
            "Python": platform.python_version(),
            **{name: version for name, version in versions.items() if version != NO_PACKAGE},
        },
    )
