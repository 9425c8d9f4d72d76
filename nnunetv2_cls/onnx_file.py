"""A trained classifier as one ONNX file: preprocessed images in, probabilities out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import nn

from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.inference import Classifier, Fold, classify, load_classifier

_IMAGES, _SEED = 4, 0
_LARGEST_DIFFERENCE = 1e-3
"""Largest difference of a probability that arithmetic in another order explains."""
_INPUT, _OUTPUT = "images", "probabilities"


class AveragedFolds(nn.Module):
    """Mean softmax of all folds and their mirror images, as :class:`.Classifier` computes it."""

    def __init__(self, folds: Sequence[Fold]) -> None:
        super().__init__()
        self._networks = nn.ModuleList(fold.network for fold in folds)
        self._axes = [fold.mirror_axes for fold in folds]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return probabilities, shape (batch, classes), of images, shape (batch, channels, ...)."""
        of_folds = []
        for network, axes in zip(self._networks, self._axes, strict=True):
            views = [images, *(images.flip(axis + 2) for axis in axes)]
            of_views = [network(view).softmax(1) for view in views]
            of_folds.append(torch.stack(of_views).mean(0))
        return torch.stack(of_folds).mean(0)


class ClsOnnxWriter:
    """Writes what :func:`.load_classifier` loads; a trainer's attribute ``onnx``."""

    def write(
        self,
        folder: Path,
        configuration: str,
        folds: Sequence[int | str],
        checkpoint: str,
        path: Path,
    ) -> dict[str, Any]:
        """Write an ONNX file, and compare it with PyTorch on random images.

        Parameters
        ----------
        folder, configuration, folds, checkpoint
            As of :func:`.load_classifier`.
        path
            File to write.

        Returns
        -------
        dict
            ``input_shape`` of an image, the largest ``difference`` of a probability, and the number
            of ``images`` that were compared.

        Raises
        ------
        ClsError
            If the folds cannot be loaded, or the file gives other probabilities.
        """
        classifier = load_classifier(folder, configuration, folds, checkpoint, torch.device("cpu"))
        shape = _input_shape(classifier)
        drawn = torch.Generator().manual_seed(_SEED)
        images = torch.randn(_IMAGES, *shape, generator=drawn)
        _export(AveragedFolds(classifier.folds).eval(), images[:2], path)
        ours = [classify(fold.network, images, fold.mirror_axes) for fold in classifier.folds]
        difference = float(np.abs(_run(path, images) - np.mean(ours, axis=0)).max())
        if not difference <= _LARGEST_DIFFERENCE:  # not so for NaN either
            raise ClsError(
                f"the ONNX file of {configuration} gives probabilities that differ by "
                f"{difference:.3g} from PyTorch's: leave it out with --no-onnx."
            )
        return {"input_shape": shape, "difference": difference, "images": _IMAGES}


def _input_shape(classifier: Classifier) -> tuple[int, ...]:
    """Return the shape of one image: channels, and the size of the configuration."""
    manager = classifier.configuration
    channels = determine_num_input_channels(classifier.plans, manager, classifier.dataset_json)
    return (int(channels), *map(int, manager.patch_size))


def _export(network: nn.Module, images: torch.Tensor, path: Path) -> None:
    """Write with torch's exporter that traces: the other one names source files of this machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated; the other needs onnxscript, too
        torch.onnx.export(
            network,
            (images,),
            str(path),
            dynamo=False,
            input_names=[_INPUT],
            output_names=[_OUTPUT],
            dynamic_axes={_INPUT: {0: "batch"}, _OUTPUT: {0: "batch"}},
        )


def _run(path: Path, images: torch.Tensor) -> np.ndarray[Any, Any]:
    import onnxruntime  # noqa: PLC0415  # an extra

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: np.ndarray[Any, Any] = session.run([_OUTPUT], {_INPUT: images.numpy()})[0]
    return found
