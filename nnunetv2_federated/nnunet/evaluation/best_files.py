"""The files in which nnU-Net keeps the best configuration: those its own commands read."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import save_json, save_pickle
from nnunetv2.evaluation.find_best_configuration import print_inference_instructions
from nnunetv2.paths import nnUNet_results
from nnunetv2.postprocessing.remove_connected_components import (
    remove_all_but_largest_component_from_segmentation,
)
from nnunetv2.utilities.file_path_utilities import folds_tuple_to_string, get_ensemble_name

from nnunetv2_federated.federation.best_configuration import METRIC, Best, Labels, Summary
from nnunetv2_federated.federation.files import write_atomically
from nnunetv2_federated.federation.queue import Fold
from nnunetv2_federated.nnunet.evaluation.site_predictions import labels_of


@dataclass(frozen=True)
class Models:
    """The trained models that a choice was made from."""

    dataset: str
    trainer: str
    """Name of the trainer in the result folders, for example ``nnUNetTrainerFederated``."""
    plans_name: str
    folds: tuple[Fold, ...]
    plans: Mapping[str, Any]
    dataset_json: Mapping[str, Any]

    def folder(self, configuration: str) -> Path:
        """Return nnU-Net's result folder of a configuration."""
        name = f"{self.trainer}__{self.plans_name}__{configuration}"
        return Path(nnUNet_results.require()) / self.dataset / name

    def source(self, configurations: Sequence[str]) -> Path:
        """Return the folder in which nnU-Net would have the predictions of all folds."""
        folders = [self.folder(name) for name in configurations]
        if len(folders) == 1:
            return folders[0] / f"crossval_results_folds_{folds_tuple_to_string(list(self.folds))}"
        return folders[0].parent / "ensembles" / self.name(configurations)

    def name(self, configurations: Sequence[str]) -> str:
        """Return nnU-Net's identifier of a configuration or an ensemble."""
        folders = [str(self.folder(name)) for name in configurations]
        if len(folders) == 1:
            return Path(folders[0]).name
        name: str = get_ensemble_name(*folders, self.folds)
        return name


def write_choice(models: Models, best: Best, classes: Sequence[Any], *, ensembles: bool) -> Path:
    """Write what ``nnUNetv2_find_best_configuration`` writes, without predictions and cases.

    Parameters
    ----------
    models
        Trained models.
    best
        What was chosen.
    classes
        Labels or regions, of :func:`.classes_of`.
    ensembles
        Whether ensembles were allowed.

    Returns
    -------
    Path
        ``inference_information.json``.
    """
    for configurations, summary in best.results.items():
        folder = models.source(configurations)
        folder.mkdir(parents=True, exist_ok=True)
        save_json(dict(models.plans), str(folder / "plans.json"), sort_keys=False)
        save_json(dict(models.dataset_json), str(folder / "dataset.json"), sort_keys=False)
        _write_summary(folder, summary)
    folder = models.source(best.chosen.configurations)
    _write_postprocessing(folder, best, classes)
    chosen = best.chosen.configurations
    information = {
        "folds": list(models.folds),
        "dataset_name_or_id": models.dataset,
        "considered_models": [_model(models, names[0]) for names in best.results if len(names) < 2],
        "ensembling_allowed": ensembles,
        "all_results": {
            models.name(names): summary["foreground_mean"][METRIC]
            for names, summary in best.results.items()
        },
        "best_model_or_ensemble": {
            "result_on_crossval_pre_pp": best.results[chosen]["foreground_mean"][METRIC],
            "result_on_crossval_post_pp": best.summary["foreground_mean"][METRIC],
            "postprocessing_file": str(folder / "postprocessing.pkl"),
            "some_plans_file": str(folder / "plans.json"),
            "selected_model_or_models": [_model(models, name) for name in chosen],
        },
    }
    results = models.folder(chosen[0]).parent
    with contextlib.redirect_stdout(io.StringIO()):  # our command prints the file
        print_inference_instructions(information, str(results / "inference_instructions.txt"))
    path = results / "inference_information.json"
    write_atomically(path, json.dumps(information, indent=4))
    return path


def _model(models: Models, configuration: str) -> dict[str, str]:
    return {
        "plans": models.plans_name,
        "plans_identifier": models.plans_name,
        "configuration": configuration,
        "trainer": models.trainer,
    }


def _write_summary(folder: Path, summary: Summary) -> None:
    means = {name: summary[name] for name in ("foreground_mean", "mean")}
    save_json({**means, "metric_per_case": []}, str(folder / "summary.json"))


def _write_postprocessing(folder: Path, best: Best, classes: Sequence[Any]) -> None:
    keep = remove_all_but_largest_component_from_segmentation
    kwargs = [
        {"labels_or_regions": as_nnunet_has_it(labels, classes)} for labels in best.chosen.removals
    ]
    save_pickle(([keep] * len(kwargs), kwargs), str(folder / "postprocessing.pkl"))
    before = best.results[best.chosen.configurations]
    content = {
        "input_folder": {name: before[name] for name in ("foreground_mean", "mean")},
        "postprocessed": {name: best.summary[name] for name in ("foreground_mean", "mean")},
        "postprocessing_fns": [keep.__name__] * len(kwargs),
        "postprocessing_kwargs": kwargs,
    }
    save_json(content, str(folder / "postprocessing.json"))
    (folder / "postprocessed").mkdir(exist_ok=True)
    _write_summary(folder / "postprocessed", best.summary)


def as_nnunet_has_it(labels: Labels, classes: Sequence[Any]) -> Any:  # noqa: ANN401  # see below
    """Return a label, the tuple of a region, or the list of all foreground labels."""
    if labels not in map(labels_of, classes):
        return list(labels)
    return labels if len(labels) > 1 else labels[0]
