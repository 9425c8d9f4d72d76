"""``nnUNetv2_federated_trainer_folder``: what to put into ``nnUNet_extTrainer``."""

from __future__ import annotations

import os

from nnunetv2_federated.nnunet.trainer_folders import trainer_folders


def main() -> None:
    """Print the folders."""
    print(os.pathsep.join(trainer_folders()))
