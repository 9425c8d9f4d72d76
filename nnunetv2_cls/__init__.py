"""Image-level classification through nnU-Net's data pipeline.

``convert`` makes a raw dataset, ``plan`` adds a configuration for classification to its plans,
``nnUNetv2_train`` or ``nnUNetv2_train_federated`` trains, and ``predict`` classifies new images.
``write_pretrained`` fits weights that were trained elsewhere. Bad input raises ``ClsError``.

A name is imported when it is first used: the package itself imports neither PyTorch nor nnU-Net.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from nnunetv2_cls.errors import ClsError

if TYPE_CHECKING:
    from nnunetv2_cls.conversion.convert import ConvertedDataset, convert
    from nnunetv2_cls.planning import PlannedConfiguration, plan
    from nnunetv2_cls.prediction import Predictions, predict
    from nnunetv2_cls.pretrained import write_pretrained

__all__ = [
    "ClsError",
    "ConvertedDataset",
    "PlannedConfiguration",
    "Predictions",
    "convert",
    "plan",
    "predict",
    "write_pretrained",
]

# No submodule may have one of these names: its import would replace the function.
_MODULES = {
    "ConvertedDataset": "conversion.convert",
    "convert": "conversion.convert",
    "PlannedConfiguration": "planning",
    "plan": "planning",
    "Predictions": "prediction",
    "predict": "prediction",
    "write_pretrained": "pretrained",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
