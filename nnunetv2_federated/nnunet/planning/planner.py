"""Plan once for all sites, with nnU-Net's planners and without an image."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import save_json
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)
from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.fingerprint import SiteFingerprint, nnunet_fingerprint
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.nnunet.environment import environment, quiet
from nnunetv2_federated.nnunet.planning.allowed_code import resolve

_DATASET = "Dataset001_Federation"


@dataclass(frozen=True)
class PlanSettings:
    """Choices of ``nnUNetv2_plan_experiment``, with the same meaning and defaults."""

    planner: str = "ExperimentPlanner"
    gpu_memory_target: float | None = None
    preprocessor: str = "DefaultPreprocessor"
    overwrite_target_spacing: tuple[float, ...] | None = None
    overwrite_plans_name: str | None = None


def plan(
    declared: Mapping[str, Any], fingerprint: SiteFingerprint, settings: PlanSettings
) -> dict[str, Any]:
    """Plan for all cases of the federation.

    Parameters
    ----------
    declared
        What all sites declare alike, of :func:`.agreement.check_agreement`.
    fingerprint
        Fingerprint that was pooled over all sites.
    settings
        Planner and its options.

    Returns
    -------
    dict
        nnU-Net's plans without ``dataset_name``, plain JSON.

    Raises
    ------
    SettingsError
        If the planner, its preprocessor or the sites' reader/writer is unknown, or the planner
        refuses an option.
    """
    reader_writer = resolve("reader/writer", declared["reader_writer"])
    resolve("preprocessor", settings.preprocessor)

    class WithoutImages(find_planner(settings.planner)):  # type: ignore[misc]  # found by name
        """Planner with the reader/writer on which the sites agree: no image is here to try it."""

        def determine_reader_writer(self) -> type:
            chosen: type = reader_writer
            return chosen

    WithoutImages.__name__ = settings.planner  # written into the plans
    dataset_json = {**dataset_json_of(declared, fingerprint.cases), "dataset": {}}
    with _dataset_without_images(dataset_json, nnunet_fingerprint(fingerprint)), quiet():
        try:
            plans, _ = plan_experiment_dataset(
                _DATASET,
                WithoutImages,
                settings.gpu_memory_target,
                settings.preprocessor,
                settings.overwrite_target_spacing,
                settings.overwrite_plans_name,
            )
        except (AssertionError, TypeError, ValueError) as error:
            raise SettingsError(f"-pl {settings.planner} refuses to plan: {error}") from error
    del plans["dataset_name"]
    plain: dict[str, Any] = json.loads(json.dumps(plans))
    return plain


def dataset_json_of(declared: Mapping[str, Any], cases: int) -> dict[str, Any]:
    """Return the ``dataset.json`` of a federation's dataset, from what its sites declare alike."""
    content = {
        "channel_names": declared["channel_names"],
        "labels": declared["labels"],
        "file_ending": declared["file_ending"],
        "numTraining": cases,
    }
    if declared["regions_class_order"] is not None:
        content["regions_class_order"] = declared["regions_class_order"]
    return content


def find_planner(name: str) -> type[ExperimentPlanner]:
    """Return the class of a planner, found as nnU-Net finds it.

    Raises
    ------
    SettingsError
        If there is no planner of that name.
    """
    try:
        planner: type[ExperimentPlanner] = resolve("planner", name)
    except SettingsError as error:
        raise SettingsError(
            f"-pl {clean(name, 80)}: no planner of nnU-Net; use ExperimentPlanner, "
            "nnUNetPlannerResEncM, nnUNetPlannerResEncL or nnUNetPlannerResEncXL."
        ) from error
    return planner


def site_fingerprint_file(fingerprint: SiteFingerprint) -> dict[str, Any]:
    """Return the content of the sites' ``dataset_fingerprint.json``: medians, no row per case."""
    content = nnunet_fingerprint(fingerprint)
    for key in ("spacings", "shapes_after_crop"):
        rows = content[key]
        content[key] = [[sorted(column)[len(rows) // 2] for column in zip(*rows, strict=True)]]
    return content


@contextlib.contextmanager
def _dataset_without_images(
    dataset_json: dict[str, Any], fingerprint: dict[str, Any]
) -> Iterator[None]:
    """Create a dataset for nnU-Net's planner that has only the files the planner reads."""
    with tempfile.TemporaryDirectory() as folder:
        raw, preprocessed = Path(folder, "raw"), Path(folder, "preprocessed")
        for path in (raw, preprocessed):
            (path / _DATASET).mkdir(parents=True)
        save_json(dataset_json, str(raw / _DATASET / "dataset.json"), False)
        save_json(fingerprint, str(preprocessed / _DATASET / "dataset_fingerprint.json"))
        with environment(
            nnUNet_raw=str(raw),
            nnUNet_preprocessed=str(preprocessed),
            # 0, which trains without workers, would become torch.set_num_threads(0)
            nnUNet_n_proc_DA="1",
        ):
            yield
