"""How models of a trainer become ONNX files, which a trainer of another package says."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from nnunetv2_federated.federation.errors import SettingsError

_PACKAGES = ("onnx", "onnxruntime")


class OnnxWriter(Protocol):
    """A trainer's attribute ``onnx``."""

    def write(
        self,
        folder: Path,
        configuration: str,
        folds: Sequence[int | str],
        checkpoint: str,
        path: Path,
    ) -> dict[str, Any]:
        """Write one file for all folds, and compare it with PyTorch.

        Parameters
        ----------
        folder
            ``nnUNet_results/<Dataset>/<Trainer>__<Plans>__<configuration>``.
        configuration, folds, checkpoint
            What to write.
        path
            File to write.

        Returns
        -------
        dict
            ``input_shape`` of an image, largest ``difference`` of a probability, and number of
            ``images`` that were compared.

        Raises
        ------
        ValueError
            If the file does not compute what PyTorch does.
        """
        ...


def onnx_writer_of(trainer: type) -> OnnxWriter:
    """Return the writer of a trainer.

    Raises
    ------
    SettingsError
        If its models have no ONNX form, or a package for it is not installed.
    """
    writer: OnnxWriter | None = getattr(trainer, "onnx", None)
    if writer is None:
        raise SettingsError(
            f"{trainer.__name__} says not how its models become ONNX files: leave them out with "
            "--no-onnx."
        )
    for package in _PACKAGES:
        if find_spec(package) is None:
            raise SettingsError(
                f"an ONNX file needs {package}: pip install 'nnunetv2-federated[release]', or "
                "leave it out with --no-onnx."
            )
    return writer
