"""A MONAI bundle of one configuration: MONAI's own converter, and what ``monai.bundle`` runs.

MONAI's converter writes weights, plans and ``dataset.json``. Its ``ModelnnUNetWrapper`` calls
``build_network_architecture`` as nnU-Net had it before 2.8, so the bundle's own configuration
builds the network as nnU-Net does, and predicts with nnU-Net's predictor.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.package_versions import installed_version
from nnunetv2_federated.nnunet.data.dataset import read_json
from nnunetv2_federated.nnunet.environment import environment
from nnunetv2_federated.nnunet.release.finished_model import FinishedModel

_FINAL, _BEST = "checkpoint_final.pth", "checkpoint_best.pth"
_CHECKPOINT = "$torch.load(@models + '/nnunet_checkpoint.pth', weights_only=True)"


def check_monai() -> None:
    """Raise ``SettingsError`` unless MONAI is installed."""
    if find_spec("monai") is None:
        raise SettingsError(
            "a MONAI bundle needs MONAI: pip install 'nnunetv2-federated[release]', or leave it "
            "out with --no-monai."
        )


def write_bundle(model: FinishedModel, copy: Path, configuration: str, bundle: Path) -> None:
    """Write the MONAI bundle of a configuration.

    Parameters
    ----------
    model
        Model that is released.
    copy
        Results folder with its clean copy.
    configuration
        Configuration of the bundle.
    bundle
        Folder to make.

    Raises
    ------
    SettingsError
        If MONAI is not installed.
    """
    check_monai()
    from monai.apps.nnunet import convert_nnunet_to_monai_bundle  # noqa: PLC0415  # an extra

    (bundle / "models").mkdir(parents=True)
    (bundle / "configs").mkdir()
    chosen = {
        "dataset_name_or_id": model.dataset,
        "nnunet_configuration": configuration,
        "nnunet_trainer": model.trainer,
        "nnunet_plans": model.plans_name,
    }
    results = copy.with_name(f"{copy.name}.monai")
    folder = results / model.dataset / model.name_of(configuration)
    source = copy / model.dataset / model.name_of(configuration)
    for fold in model.folds:
        place = folder / f"fold_{fold}"
        place.mkdir(parents=True)
        for name in (_FINAL, _BEST):  # the converter wants both; the second is not kept
            _link(source / place.name / model.checkpoints[0], place / name)
    for name in ("plans.json", "dataset.json"):
        _link(source / name, folder / name)
    with environment(nnUNet_results=str(results)):
        for fold in model.folds:
            convert_nnunet_to_monai_bundle(chosen, str(bundle), fold)
            (bundle / "models" / f"fold_{fold}" / "best_model.pt").unlink()
    _write(bundle / "configs" / "inference.json", inference(configuration, model.folds))
    _write(bundle / "configs" / "metadata.json", _metadata(bundle, model.dataset, configuration))


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; a copy where the disk has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def inference(configuration: str, folds: Sequence[int | str]) -> dict[str, Any]:
    """Return the configuration that ``python -m monai.bundle run`` segments a folder with."""
    return {
        "imports": [
            "$import torch",
            "$from batchgenerators.utilities.file_and_folder_operations import load_json",
            "$from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name",
            "$from nnunetv2.utilities.label_handling.label_handling import "
            "determine_num_input_channels",
            "$from nnunetv2.utilities.plans_handling.plans_handler import PlansManager",
        ],
        "bundle_root": ".",
        "input_dir": "$@bundle_root + '/input'",
        "output_dir": "$@bundle_root + '/output'",
        "models": "$@bundle_root + '/models'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "processes": 1,
        "dataset_json": "$load_json(@models + '/dataset.json')",
        "plans": "$PlansManager(load_json(@models + '/plans.json'))",
        "configuration": f"$@plans.get_configuration('{configuration}')",
        "nnunet_checkpoint": _CHECKPOINT,
        "parameters": [
            f"$torch.load(@models + '/fold_{fold}/model.pt', map_location='cpu', "
            "weights_only=True)['network_weights']"
            for fold in folds
        ],
        "network_def": "$recursive_find_trainer_class_by_name(@nnunet_checkpoint['trainer_name'])"
        ".build_network_architecture(@plans, @configuration, "
        "determine_num_input_channels(@plans, @configuration, @dataset_json), "
        "@plans.get_label_manager(@dataset_json).num_segmentation_heads, False)",
        "predictor": {
            "_target_": "nnunetv2.inference.predict_from_raw_data.nnUNetPredictor",
            "perform_everything_on_device": "$@device.type == 'cuda'",
            "device": "@device",
        },
        "initialize": [
            "$@network_def.load_state_dict(@parameters[0])",
            "$@predictor.manual_initialization(@network_def, @plans, @configuration, @parameters, "
            "@dataset_json, @nnunet_checkpoint['trainer_name'], "
            "@nnunet_checkpoint['inference_allowed_mirroring_axes'])",
        ],
        "run": [
            "$@predictor.predict_from_files(@input_dir, @output_dir, "
            "num_processes_preprocessing=@processes, "
            "num_processes_segmentation_export=@processes)"
        ],
    }


def _metadata(bundle: Path, dataset: str, configuration: str) -> dict[str, Any]:
    declared = read_json(bundle / "models" / "dataset.json")
    channels = declared.get("channel_names", declared.get("modality", {}))
    patch = read_json(bundle / "models" / "plans.json")["configurations"][configuration]
    image = {
        "type": "image",
        "num_channels": len(channels),
        "spatial_shape": list(patch.get("patch_size", [])),
        "dtype": "float32",
        "is_patch_data": True,
        "channel_def": channels,
    }
    labels = {str(value): name for name, value in declared["labels"].items()}
    return {
        "version": "1.0.0",
        "monai_version": installed_version("monai"),
        "pytorch_version": installed_version("torch"),
        "numpy_version": installed_version("numpy"),
        "required_packages_version": {"nnunetv2": installed_version("nnunetv2")},
        "task": f"segmentation with nnU-Net, {dataset} {configuration}",
        "description": "converted from nnU-Net; see the model card beside this bundle",
        "network_data_format": {
            "inputs": {"image": image},
            "outputs": {"pred": {**image, "num_channels": len(labels), "channel_def": labels}},
        },
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
