"""Files of the cases in a raw dataset, as nnU-Net finds them.

nnU-Net's functions do so in twelve processes, forked anew at each call from whatever this one is; a
server or site has threads by then, with which a fork may hang.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_federated.nnunet.data.dataset import read_json


def case_files(folder: Path, file_ending: str) -> dict[str, list[str]]:
    """Return the image files of each case in ``imagesTr`` or ``imagesTs``, by channel.

    Parameters
    ----------
    folder
        Its files are ``CASE_0000.ending``, ``CASE_0001.ending`` and so on; others are ignored.
    file_ending
        As in ``dataset.json``.
    """
    pattern = re.compile(rf"(.+)_\d{{4}}{re.escape(file_ending)}")
    found: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        named = pattern.fullmatch(path.name)
        if named and path.is_file():
            found.setdefault(named[1], []).append(str(path))
    return dict(sorted(found.items()))


def training_files(
    raw: Path, dataset_json: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Return ``images`` and ``label`` of each training case of a raw dataset.

    Parameters
    ----------
    raw
        Its folder.
    dataset_json
        Read from there if ``None``. It may name the files itself, as nnU-Net allows.

    Raises
    ------
    SettingsError
        If ``dataset.json`` cannot be read.
    OSError
        If there is no ``imagesTr``.
    """
    declared = dict(read_json(raw / "dataset.json") if dataset_json is None else dataset_json)
    if "dataset" in declared:
        named: dict[str, dict[str, Any]] = get_filenames_of_train_images_and_targets(
            str(raw),
            deepcopy(declared),  # it fills in whole paths
        )
        return named
    ending = str(declared["file_ending"])
    return {
        case: {"images": images, "label": str(raw / "labelsTr" / (case + ending))}
        for case, images in case_files(raw / "imagesTr", ending).items()
    }


def channel_gap(images: Sequence[str]) -> bool:
    """Whether a case's images, by channel, are not those of channel 0, 1, 2 and so on.

    nnU-Net only counts them: a case that has one of another number in place of channel 1 of 3 would
    be read with its channels in other places.
    """
    numbers = [re.search(r"_(\d{4})\.", Path(image).name) for image in images]
    found = [int(number[1]) for number in numbers if number]
    return len(found) == len(images) and found != list(range(len(images)))
