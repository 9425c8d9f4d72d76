"""Find an nnU-Net dataset, its plans and trainers; errors say in one line what is missing."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets

from nnunetv2_federated.federation.agreement import hash_plans
from nnunetv2_federated.federation.declared import declared_of
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.names import check_dataset_name, check_name
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.nnunet.data.preprocessed import check_files

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

_OF_PLANS = ("plans_name", "image_reader_writer", "transpose_forward", "transpose_backward")
"""Keys of plans that all configurations share."""


@dataclass(frozen=True)
class Dataset:
    """A planned and preprocessed dataset."""

    name: str
    folder: Path
    plans: dict[str, Any]
    dataset_json: dict[str, Any]

    @property
    def plans_hash(self) -> str:
        """SHA-256 of the plans without the dataset's name."""
        return hash_plans(self.plans)

    @property
    def declared(self) -> dict[str, Any]:
        """Channels and labels of ``dataset.json``, which must be the same at all sites."""
        return declared_of(self.dataset_json)


def check_environment(*folders: Any) -> None:  # noqa: ANN401  # paths of nnunetv2.paths
    """Raise ``SettingsError`` unless nnU-Net's folders are set; by default those of training."""
    for path in folders or (nnUNet_preprocessed, nnUNet_results):
        if not path.is_set():
            raise SettingsError(
                f"{path.env_var_name} is not set: export {path.env_var_name}=/path/to/folder "
                "(nnU-Net's documentation/setting_up_paths.md)."
            )


def find_name(name_or_id: str) -> str | None:
    """Return the name of a dataset; ``None`` if nnU-Net's folders have no dataset of this id.

    Raises
    ------
    SettingsError
        If they have several datasets of this id.
    """
    if Path(name_or_id).name != name_or_id:  # a path to another folder
        return None
    if name_or_id.startswith("Dataset"):
        return name_or_id
    try:
        names = find_candidate_datasets(int(name_or_id))
    except ValueError:
        return None
    if len(names) > 1:
        raise SettingsError(
            f"dataset {name_or_id}: more than one has this id, {_places(names)}; give the name, or "
            "rename or remove the folder that is not meant."
        )
    return str(names[0]) if len(names) else None


def check_only_name(name: str) -> None:
    """Raise ``SettingsError`` if two datasets have the same id: nnU-Net preprocesses by the id."""
    check_dataset_name(name)
    names = find_candidate_datasets(int(name[len("Dataset") :][:3]))
    if len(names) > 1:
        raise SettingsError(
            f"dataset {name}: nnU-Net preprocesses by the id, and more than one has it, "
            f"{_places(names)}; rename or remove the folder that is not meant."
        )


def _places(names: Iterable[str]) -> str:
    """Say in which of nnU-Net's folders each dataset is."""
    folders = [f for f in (nnUNet_raw, nnUNet_preprocessed, nnUNet_results) if f.is_set()]
    return " and ".join(
        f"{name} (in {', '.join(f.env_var_name for f in folders if Path(f.get(), name).is_dir())})"
        for name in names
    )


def load_dataset(name_or_id: str, plans_identifier: str = "nnUNetPlans") -> Dataset:
    """Load plans and ``dataset.json`` of a preprocessed dataset.

    Parameters
    ----------
    name_or_id
        ``Dataset501_Name`` or ``501``.
    plans_identifier
        Name of the plans, as ``-p`` of ``nnUNetv2_train``.

    Raises
    ------
    SettingsError
        If the dataset is unknown, or not planned with these plans.
    """
    # imported here: it imports torch, which takes seconds and read_plans does not need
    from nnunetv2_federated.nnunet.data.dataset_json import check_declaration  # noqa: PLC0415

    folder = _preprocessed_folder(name_or_id)
    plans_file = _plans_file(folder, plans_identifier)
    dataset_json = read_json(folder / "dataset.json")
    check_declaration(dataset_json, f"{folder / 'dataset.json'}")
    return Dataset(folder.name, folder, read_plans_file(plans_file), dataset_json)


def read_plans(name_or_id: str, plans_identifier: str = "nnUNetPlans") -> dict[str, Any]:
    """Read the plans of a preprocessed dataset, and nothing else of it.

    Parameters
    ----------
    name_or_id, plans_identifier
        Parameters of :func:`load_dataset`.

    Raises
    ------
    SettingsError
        If the dataset is unknown, or not planned with these plans.
    """
    return read_plans_file(_plans_file(_preprocessed_folder(name_or_id), plans_identifier))


def _preprocessed_folder(name_or_id: str) -> Path:
    check_environment()
    name = find_name(name_or_id)
    if name is None:
        raise SettingsError(
            f"dataset {name_or_id} is unknown: give an id such as 501 or a name such as "
            f"Dataset501_Name that exists under nnUNet_raw ({nnUNet_raw.get()}) or "
            f"nnUNet_preprocessed ({nnUNet_preprocessed.get()})."
        )
    folder = Path(nnUNet_preprocessed.require()) / name
    if not folder.is_dir():
        raise SettingsError(
            f"dataset {name} is not preprocessed: run "
            f"nnUNetv2_plan_and_preprocess -d {name_or_id} first."
        )
    return folder


def _plans_file(folder: Path, plans_identifier: str) -> Path:
    check_name("plans", plans_identifier)
    plans_file = folder / f"{plans_identifier}.json"
    if not plans_file.is_file():
        known = sorted(path.stem for path in folder.glob("*Plans*.json"))
        raise SettingsError(
            f"plans {plans_identifier} do not exist for {folder.name}: choose -p from "
            f"{', '.join(known) or 'none'}, or run nnUNetv2_plan_and_preprocess."
        )
    return plans_file


def read_plans_file(path: Path) -> dict[str, Any]:
    """Read a file of plans.

    Raises
    ------
    SettingsError
        If it cannot be read, or is of another form.
    """
    plans = read_json(path)
    _check_plans(plans, path)
    return dict(plans)


def _check_plans(plans: Any, path: Path) -> None:  # noqa: ANN401  # JSON
    """Refuse plans over which nnU-Net would fail later, without a reason."""
    configurations = plans.get("configurations") if isinstance(plans, dict) else None
    fits = isinstance(configurations, dict) and all(
        isinstance(content, dict) for content in configurations.values()
    )
    lacking = [key for key in _OF_PLANS if key not in plans] if fits else ["configurations"]
    if lacking:
        raise SettingsError(
            f"{path} is of another form than nnU-Net's plans: it lacks {', '.join(lacking)}; "
            "restore it, or plan again."
        )


def read_json(path: Path) -> Any:  # noqa: ANN401  # JSON
    """Read a JSON file of nnU-Net's.

    Raises
    ------
    SettingsError
        If the file is absent, damaged, or may not be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(
            f"{path} is damaged ({error}): restore it, or plan and preprocess again."
        ) from error


def check_planned(dataset: Dataset, configuration: str) -> None:
    """Raise ``SettingsError`` if the plans do not have the configuration."""
    known = list(dataset.plans["configurations"])
    if configuration not in known:
        raise SettingsError(
            f"configuration {configuration} is unknown: the plans of {dataset.name} have "
            f"{', '.join(known)}."
        )


def _configuration(dataset: Dataset, name: str) -> ConfigurationManager:
    """Resolve a configuration; refuse one that lacks what nnU-Net needs."""
    from nnunetv2.utilities.plans_handling.plans_handler import (  # noqa: PLC0415  # as above
        PlansManager,
    )

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of plans of an older nnU-Net, which it completes
            manager = PlansManager(dataset.plans).get_configuration(name)
        axes = {len(manager.patch_size), len(manager.spacing)}
        fits = len(axes) == 1 and manager.batch_size > 0 and manager.preprocessor_name
    except Exception as error:  # whatever a file that was edited makes nnU-Net raise
        raise SettingsError(
            f"configuration {name} in the plans of {dataset.name} cannot be used "
            f"({type(error).__name__}: {clean(error)}): restore the plans, or plan again."
        ) from error
    if not fits or not str(manager.data_identifier):
        raise SettingsError(
            f"configuration {name} in the plans of {dataset.name} has the patch size "
            f"{manager.patch_size} and the spacing {manager.spacing}, of different axes: restore "
            "the plans, or plan again."
        )
    return manager


def check_configuration(dataset: Dataset, configuration: str) -> Path:
    """Return the folder of the preprocessed cases of a configuration.

    Raises
    ------
    SettingsError
        If the plans do not have the configuration, or it is not preprocessed.
    """
    check_planned(dataset, configuration)
    manager = _configuration(dataset, configuration)
    folder = dataset.folder / str(manager.data_identifier)
    if not folder.is_dir() or not preprocessed_cases(folder):
        raise SettingsError(
            f"configuration {configuration} of {dataset.name} is not preprocessed: run "
            f"nnUNetv2_preprocess -d {dataset.name} -c {configuration}."
        )
    return folder


def preprocessed_cases(folder: Path) -> list[str]:
    """List the cases in the folder of a configuration.

    Raises
    ------
    SettingsError
        If the folder holds other files, see :func:`.preprocessed.check_files`.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import (  # noqa: PLC0415  # as above
        infer_dataset_class,
    )

    if not check_files(folder):
        return []
    return sorted(infer_dataset_class(str(folder)).get_identifiers(str(folder)))


def case_classes(dataset: Dataset, configuration: str, cases: list[str]) -> dict[str, str]:
    """Return the class of each case: its image-level label, else the labels in its segmentation.

    Image-level labels are ``labelsTr.json``, ``{case: class index}``, and ``classes`` of
    ``dataset.json``, the layout of DKFZ's image classification.
    """
    labels_file = dataset.folder / "labelsTr.json"
    if not labels_file.is_file():
        return foreground_classes(dataset, configuration, cases)
    labels = read_json(labels_file)
    names = {index: name for name, index in dataset.dataset_json.get("classes", {}).items()}
    missing = [case for case in cases if case not in labels]
    if missing:
        raise SettingsError(
            f"{labels_file} has no label for {missing[0]}; {len(missing)} cases are without."
        )
    return {case: str(names.get(labels[case], labels[case])) for case in cases}


def find_raw(name_or_id: str) -> str:
    """Return the full name of a raw dataset; it need not be preprocessed.

    Parameters
    ----------
    name_or_id
        ``Dataset501_Name`` or ``501``.

    Raises
    ------
    SettingsError
        If there is no such dataset, or ``nnUNet_raw`` is not set.
    """
    check_environment(nnUNet_raw)
    raw = Path(nnUNet_raw.require())
    name = find_name(name_or_id) or name_or_id
    if not (raw / name / "dataset.json").is_file():
        raise SettingsError(
            f"dataset {name_or_id} has no dataset.json under nnUNet_raw ({raw}): give an id such "
            "as 501 or a name such as Dataset501_Name of a raw nnU-Net dataset."
        )
    return name


def compared_labels(manager: Any) -> list[int | tuple[int, ...]]:  # noqa: ANN401  # nnU-Net's LabelManager
    """Return what nnU-Net evaluates: foreground labels, or regions as tuples."""
    return list(manager.foreground_regions if manager.has_regions else manager.foreground_labels)


def foreground_classes(dataset: Dataset, configuration: str, cases: list[str]) -> dict[str, str]:
    """Return the class of each case: its foreground labels, for example ``edema+tumour``."""
    from nnunetv2.utilities.plans_handling.plans_handler import (  # noqa: PLC0415  # as above
        PlansManager,
    )

    folder = check_configuration(dataset, configuration)
    label_names = {
        tuple(v) if isinstance(v, list) else v: k for k, v in dataset.dataset_json["labels"].items()
    }
    labels = PlansManager(dataset.plans).get_label_manager(dataset.dataset_json)
    foreground = compared_labels(labels)
    classes = {}
    for case in cases:
        locations = _class_locations(folder / f"{case}.pkl")
        present = [key for key in foreground if len(locations.get(key, ())) > 0]
        names = [label_names.get(key, str(key)) for key in present]
        classes[case] = "+".join(sorted(names)) or "background"
    return classes


def _class_locations(path: Path) -> dict[Any, Any]:
    """Read the positions of each class that nnU-Net noted when it preprocessed a case."""
    try:
        locations: dict[Any, Any] = load_pickle(str(path))["class_locations"]
    except Exception as error:  # whatever a damaged file makes pickle raise
        raise SettingsError(
            f"{path} cannot be read ({type(error).__name__}: {error}): preprocess again."
        ) from error
    return locations


def find_trainer(name: str) -> type:
    """Return the class of a trainer, found as nnU-Net finds it, but without its prints.

    Raises
    ------
    SettingsError
        If no trainer of that name exists.
    """
    # imported here: it scans and imports every trainer nnU-Net ships
    from nnunetv2.utilities.find_objects import (  # noqa: PLC0415
        recursive_find_trainer_class_by_name,
    )

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            trainer: type = recursive_find_trainer_class_by_name(name)
    except (RuntimeError, AssertionError, TypeError) as error:  # the last: no class
        raise SettingsError(
            f"trainer {clean(name, 80)} is unknown: use a class that nnUNetv2_train -tr accepts "
            "(folders of your own trainers go into nnUNet_extTrainer)."
        ) from error
    return trainer
