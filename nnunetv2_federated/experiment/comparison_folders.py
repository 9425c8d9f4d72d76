"""Where the models of a comparison are: trained ones, and those that others leave."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import torch

from nnunetv2_federated.experiment.comparison import ENSEMBLE, PERSONAL, Comparison, Model
from nnunetv2_federated.federation.run import Run, SiteCases
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.nnunet.evaluation.tester import ModelToTest
from nnunetv2_federated.nnunet.training.personal_model import CHECKPOINT, personal_folder
from nnunetv2_federated.nnunet.training.trainer import federated_trainer

_FIRST_NUMBER = 1001
_OF_MODEL = ("plans.json", "dataset.json")


def fold_folder(comparison: Comparison, model: Model, folder: Path) -> Path:
    """Return the fold's folder in a model's nnU-Net result folder.

    Parameters
    ----------
    comparison, model
        Model, and its comparison.
    folder
        Folder of the comparison.
    """
    place, fold = folder / model.folder, f"fold_{model.fold}"
    arm = comparison.arm(model.arm)
    if arm.kind == ENSEMBLE:
        return place / ENSEMBLE / fold
    trainer = federated_trainer(arm.options["trainer"]).__name__
    name = f"{trainer}__{comparison.plans_name}__{comparison.configuration}"
    if arm.kind != PERSONAL:
        return place / comparison.dataset / name / fold
    _, federation, site = model.arm.split("/", 2)
    source = dataclasses.replace(model, arm=f"federated/{federation}")
    sites = fold_folder(comparison, source, folder) / "federation" / "sites"
    run = Run(
        dataset=comparison.dataset,
        configuration=comparison.configuration,
        fold=model.fold,
        trainer=arm.options["trainer"],
        plans_name=comparison.plans_name,
        device="cpu",
        settings=FederationSettings(),
        sites=(SiteCases(site, comparison.dataset, ("any",), ()),),
    )
    return personal_folder(run, sites / site, sites)


def model_to_test(
    comparison: Comparison, model: Model, folder: Path, device: torch.device
) -> ModelToTest:
    """Return where a model is, as a tester takes it; gather an ensemble first.

    Parameters
    ----------
    comparison, model, folder
        As :func:`fold_folder` takes them.
    device
        Device to predict on.

    Raises
    ------
    OSError
        If a model of an ensemble is absent.
    """
    fold = fold_folder(comparison, model, folder)
    found = ModelToTest(fold.parent, comparison.configuration, model.fold, device)
    if comparison.arm(model.arm).kind != ENSEMBLE:
        return found
    arms = [arm.name for arm in comparison.arms if arm.kind == "local"]
    sites = comparison.sites[model.seed]
    members = [
        fold_folder(comparison, dataclasses.replace(model, arm=name), folder)
        for name in arms
        if name.removeprefix("local/") in sites
    ]
    # nnU-Net wants numbers; these are of no fold
    numbers = [model.fold, *range(_FIRST_NUMBER, _FIRST_NUMBER + len(members) - 1)]
    for number, trained in zip(numbers, members, strict=True):
        checkpoint = fold.parent / f"fold_{number}" / CHECKPOINT
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.unlink(missing_ok=True)
        try:
            os.link(trained / CHECKPOINT, checkpoint)
        except OSError:  # a file system without hard links
            shutil.copyfile(trained / CHECKPOINT, checkpoint)
        for file in _OF_MODEL:
            shutil.copyfile(trained.parent / file, fold.parent / file)
    return dataclasses.replace(found, also=tuple(numbers[1:]))
