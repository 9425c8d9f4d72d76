"""``nnUNetv2_federated_trainer_folder``: what to put into ``nnUNet_extTrainer``."""

from __future__ import annotations

import os
from pathlib import Path

import nnunetv2_federated

TRAINER_FOLDER = Path(nnunetv2_federated.__file__).parent / "ext_trainers"


def use_trainer_folder() -> None:
    """Let nnU-Net find our trainers in this process and its children, besides the user's own."""
    folders = [f for f in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if f]  # noqa: SIM112
    if str(TRAINER_FOLDER) not in folders:
        os.environ["nnUNet_extTrainer"] = os.pathsep.join([*folders, str(TRAINER_FOLDER)])  # noqa: SIM112


def main() -> None:
    """Print the folder."""
    print(TRAINER_FOLDER)
