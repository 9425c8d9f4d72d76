"""State of every random generator that nnU-Net and its augmentation draw from."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed every generator that nnU-Net and its augmentation draw from."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # batchgenerators draws from the legacy generator
    torch.manual_seed(seed)


def capture_randomness() -> dict[str, Any]:
    """Return the state of every generator, in types that ``torch.load`` reads without pickle."""
    legacy: Any = np.random.get_state()  # noqa: NPY002
    name, keys, position, has_gauss, gauss = legacy
    version, state, gauss_next = random.getstate()
    return {
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "python": [version, list(state), gauss_next],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_randomness(snapshot: dict[str, Any]) -> None:
    """Set every generator to the state that :func:`capture_randomness` returned."""
    name, keys, position, has_gauss, gauss = snapshot["numpy"]
    np.random.set_state(  # noqa: NPY002
        (name, keys.numpy().astype(np.uint32), position, has_gauss, gauss)
    )
    version, state, gauss_next = snapshot["python"]
    random.setstate((version, tuple(state), gauss_next))
    torch.set_rng_state(snapshot["torch"])
    # the machine may have fewer GPUs by now
    for gpu, state in enumerate(snapshot["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, gpu)
