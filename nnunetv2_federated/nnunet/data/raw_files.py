"""Files of the cases in a raw dataset, as nnU-Net finds them.

nnU-Net's own functions start twelve processes for this, forked from the calling process at each
call. A server or site has threads by then, and a fork of a process with threads may hang.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_federated.nnunet.data.dataset import read_json


class CaseFiles(NamedTuple):
    """Files of a training case."""

    images: list[str]
    """Paths of its images, by channel."""
    label: str
    """Path of its reference segmentation, which need not exist."""


def case_files(folder: Path, file_ending: str) -> dict[str, list[str]]:
    """Return the image files of each case in ``imagesTr`` or ``imagesTs``, by channel.

    Parameters
    ----------
    folder
        Folder with the files ``CASE_0000.ending``, ``CASE_0001.ending`` and so on; other files are
        ignored.
    file_ending
        Ending of the files, as in ``dataset.json``.
    """
    pattern = re.compile(rf"(.+)_\d{{4}}{re.escape(file_ending)}")
    images: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        named = pattern.fullmatch(path.name)
        if named and path.is_file():
            images.setdefault(named[1], []).append(str(path))
    return dict(sorted(images.items()))


def training_files(
    raw: Path, dataset_json: Mapping[str, Any] | None = None
) -> dict[str, CaseFiles]:
    """Return the files of each training case of a raw dataset.

    Parameters
    ----------
    raw
        Folder of the raw dataset.
    dataset_json
        ``dataset.json``, which may list the files itself; ``None`` to read it from the folder.

    Raises
    ------
    SettingsError
        If ``dataset.json`` cannot be read.
    OSError
        If there is no folder ``imagesTr``.
    """
    declared = dict(read_json(raw / "dataset.json") if dataset_json is None else dataset_json)
    if "dataset" in declared:
        listed: dict[str, dict[str, Any]] = get_filenames_of_train_images_and_targets(
            str(raw),
            deepcopy(declared),  # nnU-Net completes the paths in it
        )
        return {
            case: CaseFiles(list(map(str, files["images"])), str(files["label"]))
            for case, files in listed.items()
        }
    ending = str(declared["file_ending"])
    return {
        case: CaseFiles(images, str(raw / "labelsTr" / (case + ending)))
        for case, images in case_files(raw / "imagesTr", ending).items()
    }


def channel_gap(images: Sequence[str]) -> bool:
    """Whether a case's images are not those of the channels 0, 1, 2 and so on.

    nnU-Net only counts the images: with channels 0, 2 and 3 of a case, it would take channel 2 for
    channel 1.
    """
    numbers = [re.search(r"_(\d{4})\.", Path(image).name) for image in images]
    channels = [int(number[1]) for number in numbers if number]
    return len(channels) == len(images) and channels != list(range(len(images)))
