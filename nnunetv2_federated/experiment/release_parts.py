"""The forms of a released model besides nnU-Net's own: MONAI bundles, and ONNX of a classifier."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.model_card import ModelCard, OnnxRecord
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.nnunet.environment import quiet
from nnunetv2_federated.nnunet.release.finished_model import FinishedModel
from nnunetv2_federated.nnunet.release.monai_bundle import check_monai, write_bundle
from nnunetv2_federated.nnunet.release.onnx_writer import OnnxWriter, onnx_writer_of

_BUNDLES, _ONNX = "monai", "onnx"
"""Folders of a release."""


@dataclass(frozen=True)
class Part:
    """A form in which a model is released, too."""

    doing: str
    """What is told while it is written."""
    add: Callable[[FinishedModel, Path, Path, ModelCard], ModelCard]
    """Takes the model, the results folder with its clean copy, the folder of the release and its
    card; writes the form and returns the card with it."""


def bundles() -> Part:
    """Return MONAI bundles, one for each configuration.

    Raises
    ------
    SettingsError
        If MONAI is not installed.
    """
    check_monai()
    return Part("writing MONAI bundles", _add_bundles)


def onnx_files(trainer: type) -> Part:
    """Return ONNX files, one for each configuration.

    Parameters
    ----------
    trainer
        Trainer of the model.

    Raises
    ------
    SettingsError
        If the trainer's models have none, or a package for it is not installed.
    """
    writer = onnx_writer_of(trainer)
    return Part(
        "writing ONNX files and comparing them with PyTorch",
        functools.partial(_add_onnx, writer),
    )


def _add_bundles(model: FinishedModel, copy: Path, top: Path, card: ModelCard) -> ModelCard:
    names = [f"{_BUNDLES}/{configuration}" for configuration in model.configurations]
    with quiet():
        for configuration, name in zip(model.configurations, names, strict=True):
            write_bundle(model, copy, configuration, top / name)
    return dataclasses.replace(card, bundles=tuple(names))


def _add_onnx(
    writer: OnnxWriter, model: FinishedModel, copy: Path, top: Path, card: ModelCard
) -> ModelCard:
    del copy  # what is tried is what a hospital will have
    (top / _ONNX).mkdir()
    records = []
    for configuration in model.configurations:
        name = f"{_ONNX}/{configuration}.onnx"
        trained = top / model.name_of(configuration)
        with quiet():
            try:
                found = writer.write(
                    trained, configuration, model.folds, model.checkpoints[0], top / name
                )
            except ValueError as error:
                raise SettingsError(f"-c {configuration}: {clean(error)}") from error
        records.append(
            OnnxRecord(file=name, configuration=configuration, folds=model.folds, **found)
        )
    return dataclasses.replace(card, onnx=tuple(records))
