"""nnU-Net's own export and import of a finished model, with files that name no case in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nnunetv2.model_sharing.model_export import export_pretrained_model
from nnunetv2.model_sharing.model_import import install_model_from_zip_file

from nnunetv2_federated.federation.best_configuration import candidates
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.evaluated_model import of_dataset
from nnunetv2_federated.federation.evaluation import FEWEST_CASES
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.nnunet.data.dataset import find_trainer, read_json
from nnunetv2_federated.nnunet.environment import environment, quiet
from nnunetv2_federated.nnunet.evaluation.chosen_folder import POSTPROCESSING, chosen_folder
from nnunetv2_federated.nnunet.evaluation.postprocessing import (
    read_postprocessing,
    write_postprocessing,
)
from nnunetv2_federated.nnunet.release.clean_files import (
    clean_checkpoint,
    clean_fingerprint,
    clean_summary,
)
from nnunetv2_federated.nnunet.release.finished_model import FinishedModel
from nnunetv2_federated.nnunet.training.torch_file import write_torch

_PICTURE = "progress.png"
_SUMMARY = Path("validation", "summary.json")


def export_model(model: FinishedModel, scratch: Path, target: Path) -> str:
    """Export a model with nnU-Net's own function, and install it as a hospital does.

    Pictures are left out: nobody can look through them for names.

    Parameters
    ----------
    model
        Model to export.
    scratch
        Empty folder for a copy of the model with clean files; it is left as the results of the
        copy.
    target
        Folder in which the folder of the dataset is made.

    Returns
    -------
    str
        Trainer in the checkpoints: that by which nnU-Net finds the network.

    Raises
    ------
    SettingsError
        If a file of the model cannot be used.
    """
    trainers = _write_clean_copy(model, scratch)
    if len(trainers) > 1:
        raise SettingsError(
            f"the folds were trained by {' and '.join(sorted(trainers))}: release each on its own."
        )
    archive = scratch / "export.zip"
    with quiet(), environment(nnUNet_results=str(scratch)):
        export_pretrained_model(
            model.dataset,
            str(archive),
            configurations=model.configurations,
            trainer=model.trainer,
            plans_identifier=model.plans_name,
            folds=model.folds,
            save_checkpoints=model.checkpoints,
        )
    with environment(nnUNet_results=str(target)):
        install_model_from_zip_file(str(archive))
    archive.unlink()
    _remove_placeholders(target)
    return trainers.pop()


def needs(trainer: str) -> str | None:
    """Return what stock nnU-Net lacks to use a trainer's network; ``None`` for nothing.

    Parameters
    ----------
    trainer
        Trainer that checkpoints name.

    Raises
    ------
    SettingsError
        If there is no such trainer here.
    """
    package = find_trainer(trainer).__module__.partition(".")[0]
    if package == "nnunetv2":
        return None
    if package.startswith("nnunetv2_") or trainer.startswith("nnUNetTrainerCls"):
        return "nnunetv2-federated"
    return f"the trainer {clean(trainer, 80)}, which nnUNet_extTrainer points at"


def _write_clean_copy(model: FinishedModel, scratch: Path) -> set[str]:
    """Write what nnU-Net's export insists on; return the trainers that checkpoints name."""
    trainers = set()
    for configuration in model.configurations:
        source = model.folder(configuration)
        copy = scratch / model.dataset / source.name
        copy.mkdir(parents=True)
        fingerprint = source / "dataset_fingerprint.json"
        _write(copy / "plans.json", model.plans(configuration))
        _write(copy / "dataset.json", of_dataset(model.dataset_json(configuration)))
        known = read_json(fingerprint) if fingerprint.is_file() else {}
        _write(copy / fingerprint.name, clean_fingerprint(known))
    for folder in _chosen(model):
        _write_postprocessing(folder, scratch / folder.relative_to(model.results.parent))
    for configuration, fold, folder in model.fold_folders():
        copy = scratch / model.dataset / folder.parent.name / folder.name
        (copy / _SUMMARY).parent.mkdir(parents=True)
        (copy / _PICTURE).touch()
        _write(copy / _SUMMARY, _clean_summary(folder / _SUMMARY))
        for name in model.checkpoints:
            checkpoint = clean_checkpoint(folder / name, configuration, fold)
            trainers.add(str(checkpoint["trainer_name"]))
            write_torch(copy / name, checkpoint)
    return trainers


def _chosen(model: FinishedModel) -> list[Path]:
    """Return the folders that have the postprocessing of these folds and configurations."""
    folders = [
        chosen_folder([model.folder(name) for name in names], model.folds)
        for names in candidates(model.configurations, ensembles=True)
    ]
    return [folder for folder in folders if (folder / POSTPROCESSING).is_file()]


def _write_postprocessing(folder: Path, copy: Path) -> None:
    copy.mkdir(parents=True)
    path = folder / POSTPROCESSING
    steps = read_postprocessing(path.read_bytes(), str(path))
    write_postprocessing(copy / POSTPROCESSING, steps)
    summary = folder / _SUMMARY.name
    if summary.is_file():
        _write(copy / summary.name, _clean_summary(summary))


def _clean_summary(path: Path) -> dict[str, Any]:
    """Return the means of a validation; none of too few cases."""
    summary = read_json(path) if path.is_file() else {}
    if 0 < len(summary.get("metric_per_case", ())) < FEWEST_CASES:
        return {key: summary[key] for key in ("threshold",) if key in summary}
    return clean_summary(summary)


def _remove_placeholders(target: Path) -> None:
    """Remove what is only there because nnU-Net's export insists on it."""
    for picture in list(target.rglob(_PICTURE)):
        picture.unlink()
    for summary in list(target.rglob(_SUMMARY.name)):
        if read_json(summary) == {}:
            summary.unlink()
            if not any(summary.parent.iterdir()):
                summary.parent.rmdir()
    for fingerprint in list(target.rglob("dataset_fingerprint.json")):
        if read_json(fingerprint) == {}:
            fingerprint.unlink()


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
