"""One checkpoint file that a stock nnU-Net reads."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nnunetv2_federated.training import local_state


def save_as_stock(save: Callable[[Any], None], filename: str, trainer_name: str) -> None:
    """Let nnU-Net write its checkpoint, then store it under another trainer's name, atomically.

    nnU-Net finds the network at inference by ``trainer_name``; renaming it is documented as fine
    when the architecture is the same.
    """
    buffer = io.BytesIO()
    save(buffer)
    buffer.seek(0)
    checkpoint = torch.load(buffer, map_location="cpu", weights_only=False)  # written a line above
    checkpoint["trainer_name"] = trainer_name
    local_state.save(Path(filename), checkpoint)
