"""Federated training for nnU-Net v2, with Flower.

``partition`` deals the cases of a dataset to sites, ``plan`` plans for sites that show no image,
``create_run`` makes every choice of a training, ``train`` trains it (``create_queue`` and
``train_queue`` several folds and configurations), ``evaluate`` validates it again,
``find_best_configuration`` chooses among them, ``evaluate_model`` tests any trained model at every
site, ``compare`` sets federated models beside local and centralised ones, and ``tune`` finds
settings. ``release`` writes a model for a hospital, and ``verify_release`` checks it there.
``federate`` makes the federated sibling of any nnU-Net trainer. Bad input raises ``SettingsError``,
a failed federation another ``FederationError``.

A name is imported when it is first used: the package itself imports neither PyTorch, nor nnU-Net,
nor Flower.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunetv2_federated.api import (
        compare,
        create_queue,
        create_run,
        evaluate_model,
        find_best_configuration,
        partition,
        plan,
        release,
        train,
        train_queue,
        tune,
        verify_release,
    )
    from nnunetv2_federated.experiment.compare import ComparisonResult
    from nnunetv2_federated.experiment.evaluate import EvaluationResult
    from nnunetv2_federated.experiment.partition import Partition
    from nnunetv2_federated.experiment.release import Release
    from nnunetv2_federated.experiment.train import TrainedModel, evaluate
    from nnunetv2_federated.experiment.tune_result import TuningResult
    from nnunetv2_federated.experiment.verify_release import VerifiedRelease
    from nnunetv2_federated.federation.errors import (
        CheckpointError,
        FederationError,
        RoundError,
        SettingsError,
        SiteError,
    )
    from nnunetv2_federated.federation.history import History, RoundRecord
    from nnunetv2_federated.federation.observer import Observer
    from nnunetv2_federated.federation.run import Run, SiteCases
    from nnunetv2_federated.federation.settings import FederationSettings
    from nnunetv2_federated.nnunet.training.trainer import federate

    __version__: str

__all__ = [
    "CheckpointError",
    "ComparisonResult",
    "EvaluationResult",
    "FederationError",
    "FederationSettings",
    "History",
    "Observer",
    "Partition",
    "Release",
    "RoundError",
    "RoundRecord",
    "Run",
    "SettingsError",
    "SiteCases",
    "SiteError",
    "TrainedModel",
    "TuningResult",
    "VerifiedRelease",
    "compare",
    "create_queue",
    "create_run",
    "evaluate",
    "evaluate_model",
    "federate",
    "find_best_configuration",
    "partition",
    "plan",
    "release",
    "train",
    "train_queue",
    "tune",
    "verify_release",
]

# No module directly below this package may have one of these names: its import would replace it.
_MODULES = {
    "compare": "api",
    "create_queue": "api",
    "create_run": "api",
    "evaluate_model": "api",
    "find_best_configuration": "api",
    "partition": "api",
    "plan": "api",
    "release": "api",
    "train": "api",
    "train_queue": "api",
    "tune": "api",
    "verify_release": "api",
    "ComparisonResult": "experiment.compare",
    "EvaluationResult": "experiment.evaluate",
    "Partition": "experiment.partition",
    "TrainedModel": "experiment.train",
    "Release": "experiment.release",
    "TuningResult": "experiment.tune_result",
    "VerifiedRelease": "experiment.verify_release",
    "evaluate": "experiment.train",
    "CheckpointError": "federation.errors",
    "FederationError": "federation.errors",
    "RoundError": "federation.errors",
    "SettingsError": "federation.errors",
    "SiteError": "federation.errors",
    "History": "federation.history",
    "RoundRecord": "federation.history",
    "Observer": "federation.observer",
    "Run": "federation.run",
    "SiteCases": "federation.run",
    "FederationSettings": "federation.settings",
    "federate": "nnunet.training.trainer",
}


def __getattr__(name: str) -> object:
    value: object
    if name == "__version__":
        value = import_module("importlib.metadata").version("nnunetv2-federated")
    elif name in _MODULES:
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
