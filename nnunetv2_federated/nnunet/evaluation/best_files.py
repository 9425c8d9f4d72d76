"""The files in which nnU-Net keeps the best configuration: those its own commands read."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import save_pickle
from nnunetv2.evaluation.find_best_configuration import print_inference_instructions
from nnunetv2.paths import nnUNet_results
from nnunetv2.postprocessing.remove_connected_components import (
    remove_all_but_largest_component_from_segmentation,
)
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_federated.federation.best_configuration import Best, Labels, Summary
from nnunetv2_federated.federation.files import replacing, write_atomically
from nnunetv2_federated.federation.messages import DICE
from nnunetv2_federated.federation.queue import Fold
from nnunetv2_federated.nnunet.evaluation.chosen_folder import POSTPROCESSING, chosen_folder
from nnunetv2_federated.nnunet.evaluation.site_predictions import label_manager_of, labels_of


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

    @property
    def label_manager(self) -> LabelManager:
        """nnU-Net's, of the dataset."""
        return label_manager_of(self.plans, self.dataset_json)

    def folder(self, configuration: str) -> Path:
        """Return nnU-Net's result folder of a configuration."""
        name = f"{self.trainer}__{self.plans_name}__{configuration}"
        return Path(nnUNet_results.require()) / self.dataset / name

    def source(self, configurations: Sequence[str]) -> Path:
        """Return the folder in which nnU-Net would have the predictions of all folds."""
        return chosen_folder([self.folder(name) for name in configurations], self.folds)

    def name(self, configurations: Sequence[str]) -> str:
        """Return nnU-Net's identifier of a configuration or an ensemble."""
        if len(configurations) == 1:
            return self.folder(configurations[0]).name
        return self.source(configurations).name


def write_choice(models: Models, best: Best, classes: Sequence[Any], *, ensembles: bool) -> Path:
    """Write what ``nnUNetv2_find_best_configuration`` writes, without predictions and cases.

    Parameters
    ----------
    models
        Trained models.
    best
        What was chosen.
    classes
        Labels or regions, of :func:`.compared_labels`.
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
        _write(folder / "plans.json", models.plans)
        _write(folder / "dataset.json", models.dataset_json)
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
            models.name(names): summary["foreground_mean"][DICE]
            for names, summary in best.results.items()
        },
        "best_model_or_ensemble": {
            "result_on_crossval_pre_pp": best.results[chosen]["foreground_mean"][DICE],
            "result_on_crossval_post_pp": best.summary["foreground_mean"][DICE],
            "postprocessing_file": str(folder / POSTPROCESSING),
            "some_plans_file": str(folder / "plans.json"),
            "selected_model_or_models": [_model(models, name) for name in chosen],
        },
    }
    results = models.folder(chosen[0]).parent
    with (
        contextlib.redirect_stdout(io.StringIO()),  # our command prints the file
        replacing(results / "inference_instructions.txt") as unfinished,
    ):
        print_inference_instructions(information, str(unfinished))
    path = results / "inference_information.json"
    _write(path, information)
    return path


def _write(path: Path, content: Mapping[str, Any], *, in_order: bool = True) -> None:
    write_atomically(path, json.dumps(content, indent=4, sort_keys=not in_order))


def _model(models: Models, configuration: str) -> dict[str, str]:
    return {
        "plans": models.plans_name,
        "plans_identifier": models.plans_name,
        "configuration": configuration,
        "trainer": models.trainer,
    }


def _write_summary(folder: Path, summary: Summary) -> None:
    means = {name: summary[name] for name in ("foreground_mean", "mean")}
    _write(folder / "summary.json", {**means, "metric_per_case": []}, in_order=False)


def _write_postprocessing(folder: Path, best: Best, classes: Sequence[Any]) -> None:
    keep = remove_all_but_largest_component_from_segmentation
    kwargs = [
        {"labels_or_regions": as_nnunet_has_it(labels, classes)} for labels in best.chosen.removals
    ]
    with replacing(folder / POSTPROCESSING) as unfinished:
        save_pickle(([keep] * len(kwargs), kwargs), str(unfinished))
    before = best.results[best.chosen.configurations]
    content = {
        "input_folder": {name: before[name] for name in ("foreground_mean", "mean")},
        "postprocessed": {name: best.summary[name] for name in ("foreground_mean", "mean")},
        "postprocessing_fns": [keep.__name__] * len(kwargs),
        "postprocessing_kwargs": kwargs,
    }
    _write(folder / "postprocessing.json", content, in_order=False)
    (folder / "postprocessed").mkdir(exist_ok=True)
    _write_summary(folder / "postprocessed", best.summary)


def as_nnunet_has_it(labels: Labels, classes: Sequence[Any]) -> Any:  # noqa: ANN401  # see below
    """Return a label, the tuple of a region, or the list of all foreground labels."""
    if labels not in map(labels_of, classes):
        return list(labels)
    return labels if len(labels) > 1 else labels[0]
