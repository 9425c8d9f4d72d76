"""nnU-Net's postprocessing, read from its pickle by an allow-list, and applied by its own code."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import save_pickle
from nnunetv2.postprocessing.remove_connected_components import (
    load_postprocess_save,
    remove_all_but_largest_component_from_segmentation,
)

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.evaluated_model import Postprocessing
from nnunetv2_federated.federation.text import clean

_FUNCTION = remove_all_but_largest_component_from_segmentation
_NAME = _FUNCTION.__name__
_OF_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
"""Where NumPy 1 and 2 have the function by which they pickle a number."""
LONGEST = 2**20
"""Most bytes of a ``postprocessing.pkl``."""


def _integer(dtype: np.dtype[Any], raw: bytes) -> int:
    """Return a label that NumPy has pickled, as those of nnU-Net's label manager are."""
    if not isinstance(dtype, np.dtype) or dtype.kind not in "iu":
        raise pickle.UnpicklingError("a label is no integer")
    return int(np.frombuffer(raw, dtype, count=1)[0])


class _OnlyOurs(pickle.Unpickler):
    """Knows one function of nnU-Net's and integers; no other name in a pickle is looked up."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401  # a class or function
        if (module, name) == (_FUNCTION.__module__, _NAME):
            return _FUNCTION
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if name == "scalar" and module in _OF_NUMPY:
            return _integer
        raise pickle.UnpicklingError(f"it names code, {module}.{name}")


def read_postprocessing(content: bytes, where: str) -> list[Postprocessing]:
    """Read a ``postprocessing.pkl`` of nnU-Net's, without running code that is in it.

    Parameters
    ----------
    content
        Bytes of the file, from any source.
    where
        Name of the file, for the message.

    Raises
    ------
    SettingsError
        If it cannot be read, or names other code than nnU-Net's function.
    """
    if len(content) > LONGEST:
        raise SettingsError(f"{where}: {len(content)} bytes, a postprocessing.pkl has fewer.")
    try:
        functions, arguments = _OnlyOurs(io.BytesIO(content)).load()
        return [
            _step(function, given) for function, given in zip(functions, arguments, strict=True)
        ]
    except Exception as error:  # foreign bytes make pickle raise whatever they like
        raise SettingsError(
            f"{where}: not nnU-Net's postprocessing ({clean(error, 100)}): restore it, or leave it "
            "out with --no-postprocessing."
        ) from error


def _step(function: object, given: dict[str, Any]) -> Postprocessing:
    if function is not _FUNCTION:
        raise ValueError("a step is no function of nnU-Net's")
    arguments = dict(given)
    labels, background = arguments.pop("labels_or_regions"), arguments.pop("background_label", 0)
    if arguments:
        raise ValueError(f"unknown argument {min(map(str, arguments))}")
    listed = labels if isinstance(labels, list) else [labels]
    return Postprocessing(
        _NAME,
        [list(label) if isinstance(label, tuple) else label for label in listed],
        background,
    )


def postprocess(file: str, steps: Sequence[Postprocessing], reader: Any) -> None:  # noqa: ANN401  # nnU-Net's reader/writer
    """Apply postprocessing to a segmentation, in place, as ``nnUNetv2_apply_postprocessing`` does.

    Parameters
    ----------
    file
        File of the segmentation.
    steps
        What :func:`read_postprocessing` returned.
    reader
        nnU-Net's reader/writer for the file.
    """
    if steps:
        load_postprocess_save(file, file, reader, [_FUNCTION] * len(steps), _arguments(steps))


def write_postprocessing(path: Path, steps: Sequence[Postprocessing]) -> None:
    """Write a ``postprocessing.pkl`` for ``nnUNetv2_apply_postprocessing``."""
    save_pickle(([_FUNCTION] * len(steps), _arguments(steps)), str(path))


def _arguments(steps: Sequence[Postprocessing]) -> list[dict[str, Any]]:
    return [
        {
            "labels_or_regions": [tuple(x) if isinstance(x, list) else x for x in step.labels],
            "background_label": step.background,
        }
        for step in steps
    ]
