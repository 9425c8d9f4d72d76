"""Load whole images with their class, through nnU-Net's dataset class and transforms."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from batchgenerators.dataloading.data_loader import DataLoader
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController
from torch.nn.functional import interpolate

from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.labels import ImageLabels

NamedImage: TypeAlias = tuple[str, NDArray[Any]]
"""Case name, and preprocessed image of shape (channels, z, y, x)."""


def fit_image(image: NDArray[Any], size: Sequence[int]) -> torch.Tensor:
    """Bring a whole image to a size: scale it to fit, keeping its proportions, then pad.

    Parameters
    ----------
    image
        Image of shape (channels, z, y, x); for a 2D size z is 1 and is dropped.
    size
        Size to reach, (y, x) or (z, y, x) in voxels.

    Returns
    -------
    torch.Tensor
        Shape (channels, size...), float32, padded with 0, the mean of an image that is normalised
        by z-score.

    Raises
    ------
    ClsError
        If the size is 2D and the image has more than one slice.
    """
    if len(size) == 2 and image.shape[1] != 1:
        raise ClsError(
            f"an image has {image.shape[1]} slices, of which a 2D configuration sees one: use one "
            "such as 3d_fullres_cls."
        )
    tensor = torch.from_numpy(np.ascontiguousarray(image)).float()
    if len(size) == 2:
        tensor = tensor[:, 0]
    shape = tensor.shape[1:]
    scale = min(target / n for target, n in zip(size, shape, strict=True))
    fitted = [min(target, max(1, round(n * scale))) for target, n in zip(size, shape, strict=True)]
    if tuple(fitted) != tuple(shape):
        two_d = len(size) == 2
        tensor = interpolate(
            tensor[None],
            size=fitted,
            mode="bilinear" if two_d else "trilinear",
            antialias=two_d,
            align_corners=False,
        )[0]
    starts = [-((target - n) // 2) for target, n in zip(size, fitted, strict=True)]
    box = [[start, start + target] for start, target in zip(starts, size, strict=True)]
    padded: torch.Tensor = crop_and_pad_nd(tensor, box, 0)
    return padded


def batches(
    images: Iterable[NamedImage],
    configuration_manager: Any,  # noqa: ANN401  # nnU-Net's ConfigurationManager
) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Fit preprocessed images to a configuration's size, and stack them to its batch size.

    Parameters
    ----------
    images
        Name and image of each case.
    configuration_manager
        Configuration of the classifier.

    Yields
    ------
    tuple
        Case names, and a tensor of shape (cases, channels, size...).
    """
    remaining = iter(images)
    while batch := list(islice(remaining, configuration_manager.batch_size)):
        fitted = [fit_image(image, configuration_manager.patch_size) for _, image in batch]
        yield [name for name, _ in batch], torch.stack(fitted)


class ImageLoader(DataLoader):
    """Yield ``{"data": (b, c, *size), "target": (b,), "keys": [case, ...]}`` without end.

    Parameters
    ----------
    data
        nnU-Net's dataset of the cases.
    labels
        Class of each case.
    batch_size
        Number of images in a batch.
    size
        Size of an image in a batch, (y, x) or (z, y, x) in voxels.
    transforms
        nnU-Net's transforms of a single image; ``None`` for no augmentation.
    shuffle
        For training: each pass has a new order, and batches are always full. Otherwise cases come
        in order, and the last batch of a pass may be smaller.
    balanced
        Draw each class equally often, with replacement, in place of passes.
    workers
        Number of processes that share a pass.
    """

    def __init__(
        self,
        data: Any,  # noqa: ANN401  # nnU-Net's dataset class
        labels: ImageLabels,
        batch_size: int,
        size: Sequence[int],
        transforms: Any,  # noqa: ANN401  # batchgeneratorsv2's
        *,
        shuffle: bool,
        balanced: bool = False,
        workers: int = 1,
    ) -> None:
        super().__init__(data, batch_size, workers, None, True, shuffle, True)
        self.indices = list(data.identifiers)
        self.transforms = transforms
        self._labels = labels
        self._size = tuple(size)
        self._balanced = balanced
        self._waiting: list[str] = []

    def restart(self) -> None:
        """Begin a new pass."""
        self._waiting = []

    def get_indices(self) -> list[str]:
        """Return the cases of the next batch."""
        if not self.shuffle:
            self._waiting = self._waiting or list(self.indices)
        while self.shuffle and len(self._waiting) < self.batch_size:
            self._waiting += self._pass()
        batch = self._waiting[: self.batch_size]
        self._waiting = self._waiting[self.batch_size :]
        return batch

    def _pass(self) -> list[str]:
        if self._balanced:
            targets = self._labels.of(self.indices)
            weights = 1.0 / np.bincount(targets)[targets]
            return list(
                np.random.choice(  # noqa: NPY002  # the generator nnU-Net seeds
                    self.indices, len(self.indices), p=weights / weights.sum()
                )
            )
        workers = self.number_of_threads_in_multithreaded
        share = self.indices[self.thread_id % workers :: workers] or self.indices
        return list(np.random.permutation(share))  # noqa: NPY002  # the generator nnU-Net seeds

    def generate_train_batch(self) -> dict[str, Any]:
        """Load, fit and augment the next batch."""
        keys = self.get_indices()
        images = []
        with torch.no_grad(), _thread_pools().limit(limits=1):
            for key in keys:
                image, *_ = self._data.load_case(key)
                fitted = fit_image(image[:], self._size)
                if self.transforms is not None:
                    fitted = self.transforms(image=fitted)["image"]
                images.append(fitted)
        target = torch.from_numpy(self._labels.of(keys))
        return {"data": torch.stack(images), "target": target, "keys": keys}


@functools.cache
def _thread_pools() -> ThreadpoolController:
    """Find the thread pools of this process once: looking for them takes as long as an image."""
    return ThreadpoolController()
