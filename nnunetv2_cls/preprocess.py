"""Raw images through nnU-Net's preprocessing, one after another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.utils import get_identifiers_from_splitted_dataset_folder

Problems = Callable[[str, Exception], None]


def raw_cases(folder: Path, file_ending: str) -> dict[str, list[str]]:
    """Return the files of every case in a folder such as ``imagesTs``, by channel."""
    names = get_identifiers_from_splitted_dataset_folder(str(folder), file_ending)
    files = defaultdict(list)
    for path in sorted(folder.glob(f"*_[0-9][0-9][0-9][0-9]{file_ending}")):
        files[path.name.removesuffix(file_ending)[:-5]].append(str(path))
    return {str(name): files[name] for name in names}


def preprocessed_images(
    cases: Mapping[str, list[str]],
    plans_manager: Any,  # noqa: ANN401  # nnU-Net's PlansManager
    configuration_manager: Any,  # noqa: ANN401  # nnU-Net's ConfigurationManager
    dataset_json: dict[str, Any],
    unreadable: Problems | None = None,
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Read, crop, resample and normalise raw images as nnU-Net does for prediction.

    Parameters
    ----------
    cases
        Files of each case.
    plans_manager, configuration_manager, dataset_json
        Of the model.
    unreadable
        Told of a case that cannot be read, which is then left out; ``None`` to raise.

    Yields
    ------
    tuple
        Name, and image of shape (channels, z, y, x).
    """
    preprocessor = configuration_manager.preprocessor_class(verbose=False)
    for name, files in cases.items():
        try:
            image, _, _ = preprocessor.run_case(
                files, None, plans_manager, configuration_manager, dataset_json
            )
            _check_channels(image, len(dataset_json["channel_names"]))
        except Exception as error:
            if unreadable is None:
                raise
            unreadable(name, error)
            continue
        yield name, image


def _check_channels(image: np.ndarray[Any, Any], expected: int) -> None:
    if image.shape[0] != expected:
        raise ValueError(f"it has {image.shape[0]} channels, the model was trained with {expected}")
