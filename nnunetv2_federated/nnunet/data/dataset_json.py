"""Check that nnU-Net can use a ``dataset.json``, and say in one line why it cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_federated.federation.declared import declared_of, has_regions
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.text import clean


def check_declaration(dataset_json: Any, where: str = "dataset.json") -> None:  # noqa: ANN401  # JSON
    """Make sure that nnU-Net can use the channels and labels that a ``dataset.json`` declares.

    Parameters
    ----------
    dataset_json
        Content of the file, from any source.
    where
        Name of the file in the message.

    Raises
    ------
    SettingsError
        If it cannot: names the key and what is allowed, or gives nnU-Net's own reason.
    """
    if not isinstance(dataset_json, dict):
        raise SettingsError(f"{where}: give an object with channel_names, labels and file_ending.")
    _check_channels(dataset_json, where)
    _check_labels(dataset_json, where)
    if not isinstance(dataset_json.get("file_ending"), str):
        raise SettingsError(f'{where} has no file_ending: give one, such as ".nii.gz".')


def _check_channels(dataset_json: Mapping[str, Any], where: str) -> None:
    channels = dataset_json.get("channel_names", dataset_json.get("modality"))
    if not isinstance(channels, dict) or not channels:
        raise SettingsError(
            f"{where}: channel_names {clean(channels, 80)}: give a name to each channel, as in "
            '{"0": "CT"}.'
        )
    declared = declared_of(dataset_json)["channel_names"]
    other = declared_of({"modality": dataset_json.get("modality", channels)})["channel_names"]
    if list(declared.items()) != list(other.items()) or len(declared) < len(channels):
        raise SettingsError(
            f"{where}: modality {clean(dataset_json.get('modality'), 80)} and channel_names "
            f"{clean(channels, 80)} differ, or name a channel twice: nnU-Net reads both; keep "
            "channel_names."
        )


def _check_labels(dataset_json: Mapping[str, Any], where: str) -> None:
    labels = dataset_json.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise SettingsError(
            f"{where}: labels {clean(labels, 80)}: give a number to each label, as in "
            '{"background": 0, "tumour": 1}.'
        )
    if all(str(name).isdecimal() for name in labels):
        raise SettingsError(
            f"{where}: labels are the other way round, as in nnU-Net v1: write "
            '"background": 0, or convert the dataset with nnUNetv2_convert_old_nnUNet_dataset.'
        )
    order = dataset_json.get("regions_class_order")
    if _has_text_in_regions(labels, order):
        raise SettingsError(
            f"{where}: labels and regions_class_order have numbers in quotation marks, which "
            "nnU-Net does not read where there are regions: leave the marks out."
        )
    try:
        manager = LabelManager(labels, order)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise SettingsError(f"{where}: labels {clean(labels, 80)}: {clean(error)}") from error
    if not manager.has_regions and manager.all_labels != list(range(len(manager.all_labels))):
        raise SettingsError(
            f"{where}: labels {clean(labels, 80)}: nnU-Net needs the numbers 0, 1, 2 and so on, "
            "none left out."
        )


def _has_text_in_regions(labels: Mapping[str, Any], order: Sequence[Any] | None) -> bool:
    """Whether labels with regions, or their order, have a number that is written as text."""
    if not has_regions(labels):
        return False
    values = [*(order or ()), *labels.values()]
    numbers = [n for value in values for n in (value if isinstance(value, list) else [value])]
    return any(isinstance(number, str) for number in numbers)
