"""Folders in which nnU-Net looks for trainers: the user's own, and those of installed packages."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from pathlib import Path

_GROUP = "nnunetv2_federated.trainer_folders"
_OURS = Path(__file__).parents[1] / "ext_trainers"


def trainer_folders() -> list[str]:
    """Return the trainer folders that installed packages offer, this package's last.

    A package offers one by an entry point of the group ``nnunetv2_federated.trainer_folders`` whose
    value is a package without ``__init__`` of its own, such as ``nnunetv2_cls.ext_trainers``. This
    package's folder answers to every name that ends in ``Federated`` and so must be asked last.
    """
    offered = [str(Path(e.load().__path__[0])) for e in entry_points(group=_GROUP)]
    return [*sorted(folder for folder in offered if Path(folder) != _OURS), str(_OURS)]


def use_trainer_folders() -> None:
    """Let nnU-Net find these trainers in this process and its children, besides the user's own."""
    own = [f for f in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if f]  # noqa: SIM112
    ours = trainer_folders()
    folders = [*(f for f in own if f not in ours), *ours]
    os.environ["nnUNet_extTrainer"] = os.pathsep.join(folders)  # noqa: SIM112
