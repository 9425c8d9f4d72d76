"""Environment of a process that trains: trainer folders for nnU-Net, and no telemetry."""

from __future__ import annotations

import os

from nnunetv2_federated.nnunet.trainer_folders import use_trainer_folders
from nnunetv2_federated.nnunet.training.tracking import stay_local


def prepare_process() -> None:
    """Let nnU-Net find the trainers of installed packages, and turn telemetry off.

    What the user has set in the environment stays as it is.
    """
    use_trainer_folders()
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    stay_local()
