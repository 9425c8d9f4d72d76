"""Flower's Ray simulation, for several GPUs; needs the ``ray`` extra.

Written for Flower 1.41 and 1.42.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch
from flwr.serverapp import ServerApp

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.flower.client_app import app as client_app
from nnunetv2_federated.flower.records import RUN_FOLDER_VARIABLE


def check_ray() -> None:
    """Raise ``SettingsError`` unless Ray is installed."""
    if importlib.util.find_spec("ray") is None:
        raise SettingsError(
            '--backend ray needs Ray: pip install "nnunetv2-federated[ray]", or leave --backend.'
        )


def run_with_ray(server_app: ServerApp, folder: Path, num_sites: int) -> None:
    """Run the server app here and the installed client app in Ray's actors."""
    from flwr.simulation import run_simulation  # noqa: PLC0415  # only with the extra

    # Ray's workers inherit the environment of the process that starts Ray
    os.environ[RUN_FOLDER_VARIABLE] = str(folder)
    gpus = torch.cuda.device_count()
    try:
        run_simulation(
            server_app=server_app,
            client_app=client_app,
            num_supernodes=num_sites,
            backend_config={
                "client_resources": {
                    "num_cpus": max(1, (os.cpu_count() or 1) // gpus) if gpus else 1,
                    "num_gpus": 1.0 if gpus else 0.0,
                },
            },
        )
    finally:
        os.environ.pop(RUN_FOLDER_VARIABLE, None)
