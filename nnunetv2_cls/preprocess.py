"""Preprocess raw images with nnU-Net, one after another, and check what their headers say."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import SimpleITK as sitk  # noqa: N813  # its own documentation's name
import tifffile
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from PIL import Image

from nnunetv2_cls.conversion.images import read_as_nnunet
from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.labels import some

OnUnreadable: TypeAlias = Callable[[str, Exception], None]
"""Called with the name of a case that cannot be read, and why."""


def num_channels(dataset_json: Mapping[str, Any]) -> int:
    """Return the number of channels of a dataset's images.

    An older ``dataset.json`` names them in ``modality``.
    """
    return len(dataset_json.get("modality") or dataset_json["channel_names"])


def raw_cases(folder: Path, file_ending: str) -> dict[str, list[str]]:
    """Return the files of every case in a folder such as ``imagesTs``, by channel.

    Files that are not named as nnU-Net names them are left out.
    """
    files = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if match := re.fullmatch(rf"(.+)_\d{{4}}{re.escape(file_ending)}", path.name):
            files[match[1]].append(str(path))
    return dict(files)


@dataclass(frozen=True)
class ExpectedImages:
    """Channels and dimensions that the images of a case must have, as their headers give them."""

    channels: int
    flat: bool
    """The configuration is 2D."""
    reader: str
    """Name of nnU-Net's reader."""
    transpose: tuple[int, ...]
    """nnU-Net's ``transpose_forward``."""

    @classmethod
    def of(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: Mapping[str, Any],
    ) -> ExpectedImages:
        """Return what a configuration takes."""
        return cls(
            num_channels(dataset_json),
            len(configuration_manager.patch_size) == 2,
            str(plans_manager.plans["image_reader_writer"]),
            tuple(plans_manager.transpose_forward),
        )

    def problem(self, files: Sequence[str]) -> str | None:
        """Return why the files of a case do not fit, as a predicate, or ``None`` if they do.

        Raises
        ------
        OSError, RuntimeError
            If a file cannot be read.
        """
        headers = [self._header(file) for file in files]
        channels = sum(count for count, _ in headers)
        if channels != self.channels:
            return f"have {channels} channels in {len(files)} files, not {self.channels}"
        for _, shape in headers:
            slices = self._slices(shape)
            if self.flat and slices != 1:
                return f"have {slices} slices, of which a 2D configuration sees one"
            if not self.flat and len(shape) == 2:
                return "are 2D, the configuration takes volumes"
        return None

    def _slices(self, shape: Sequence[int]) -> int:
        if len(shape) == 2 or ("Reorient" in self.reader and 1 in shape):
            return 1
        return shape[self.transpose[0]]

    def _header(self, file: str) -> tuple[int, tuple[int, ...]]:
        """Return channels and shape, (y, x) or (z, y, x), as nnU-Net's reader makes them."""
        if self.reader == "NaturalImage2DIO" and file.lower().endswith((".tif", ".tiff")):
            with tifffile.TiffFile(file) as image:
                shape = image.series[0].shape
            return (shape[2], shape[:2]) if len(shape) == 3 else (1, shape)
        if self.reader == "NaturalImage2DIO":
            with Image.open(file) as image:
                bands = 3 if image.mode == "P" else len(image.getbands())
                alpha = image.mode == "P" and "transparency" in image.info
                return bands + alpha, image.size[::-1]
        if self.reader == "Tiff3DIO":
            with tifffile.TiffFile(file) as image:
                return 1, image.series[0].shape
        header = sitk.ImageFileReader()
        header.SetFileName(file)
        header.ReadImageInformation()
        shape = header.GetSize()[::-1]
        return (shape[0], shape[1:]) if len(shape) == 4 else (1, shape)


def check_images(
    cases: Mapping[str, Sequence[str]], expected: ExpectedImages, where: str
) -> list[str]:
    """Refuse images of other channels or dimensions than a configuration takes.

    Parameters
    ----------
    cases
        Files of each case.
    expected
        What the configuration takes.
    where
        Name of the images in the error message.

    Returns
    -------
    list
        Cases with a file that cannot be read.

    Raises
    ------
    ClsError
        Naming up to three images of each kind that do not fit.
    """
    wrong = defaultdict(list)
    unreadable = []
    for case, files in cases.items():
        try:
            problem = expected.problem(files)
        except (OSError, RuntimeError):
            unreadable.append(case)
            continue
        if problem is not None:
            wrong[problem].append(case)
    if wrong:
        kinds = "; ".join(f"{len(of)} images {what} ({some(of)})" for what, of in wrong.items())
        raise ClsError(f"{where}: {kinds}: replace or remove them.")
    return unreadable


def preprocessed_images(
    cases: Mapping[str, list[str]],
    plans_manager: Any,  # noqa: ANN401  # nnU-Net's PlansManager
    configuration_manager: Any,  # noqa: ANN401  # nnU-Net's ConfigurationManager
    dataset_json: dict[str, Any],
    on_unreadable: OnUnreadable | None = None,
    *,
    converted: Collection[str] = (),
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Read, crop, resample and normalise raw images as nnU-Net does for prediction.

    Parameters
    ----------
    cases
        Files of each case, by channel.
    plans_manager, configuration_manager, dataset_json
        Plans, configuration and dataset of the classifier.
    on_unreadable
        Called for a case that cannot be read, which is then left out; ``None`` to raise instead.
    converted
        Cases of one file, which is read as ``nnUNetv2_cls_convert`` reads it.

    Yields
    ------
    tuple
        Case name, and image of shape (channels, z, y, x).
    """
    preprocessor = configuration_manager.preprocessor_class(verbose=False)
    for name, files in cases.items():
        try:
            if name in converted:
                read = read_as_nnunet(Path(files[0]), num_channels(dataset_json))
            else:
                read = plans_manager.image_reader_writer_class().read_images(files)
            image, _, _ = preprocessor.run_case_npy(
                read[0], None, read[1], plans_manager, configuration_manager, dataset_json
            )
            _check_channels(image, num_channels(dataset_json))
        except Exception as error:
            if on_unreadable is None:
                raise
            on_unreadable(name, error)
            continue
        yield name, image


def _check_channels(image: np.ndarray[Any, Any], expected: int) -> None:
    if image.shape[0] != expected:
        raise ValueError(f"it has {image.shape[0]} channels, the model was trained with {expected}")
