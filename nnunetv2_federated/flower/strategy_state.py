"""What a Flower strategy remembers between rounds, as tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvgM, FedYogi, Strategy

from nnunetv2_federated.federation.errors import CheckpointError

_MOMENTS = ("current_arrays", "m_t", "v_t")
_REMEMBERED: dict[type[Strategy], tuple[str, ...]] = {
    FedAvgM: ("current_arrays", "momentum_vector"),
    FedAdam: _MOMENTS,
    FedYogi: _MOMENTS,
    FedAdagrad: _MOMENTS,
}
"""Attributes that training changes, by strategy. FedAvg, FedProx and the robust strategies have
none; what was chosen when a strategy was built stands in ``run.json``."""


def _encode(value: object) -> object:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value))
    if isinstance(value, ArrayRecord):
        return {"records": {k: _encode(a.numpy()) for k, a in value.items()}}
    if isinstance(value, dict):
        return {"dict": {k: _encode(v) for k, v in value.items()}}
    return {"list": [_encode(v) for v in value]} if isinstance(value, list) else value


def _decode(value: Any) -> Any:  # noqa: ANN401  # mirrors _encode
    if isinstance(value, torch.Tensor):
        return value.numpy()
    if not isinstance(value, dict):
        return value
    kind, content = next(iter(value.items()))
    if kind == "list":
        return [_decode(v) for v in content]
    decoded = {k: _decode(v) for k, v in content.items()}
    if kind == "records":
        return ArrayRecord({k: Array(v) for k, v in decoded.items()})
    return decoded


def dump(strategy: Strategy) -> dict[str, Any]:
    """Return what training has changed in a strategy: momentum, second moments, its last model."""
    return {name: _encode(getattr(strategy, name)) for name in _REMEMBERED.get(type(strategy), ())}


def restore(strategy: Strategy, state: Mapping[str, Any]) -> None:
    """Put back what :func:`dump` returned; what else is in ``state`` is passed over.

    Raises
    ------
    CheckpointError
        If something is missing: the state is of another strategy.
    """
    for name in _REMEMBERED.get(type(strategy), ()):
        if name not in state:
            raise CheckpointError(
                f"the saved state of {type(strategy).__name__} lacks {name}: it is of another "
                "strategy; start anew without --c."
            )
        setattr(strategy, name, _decode(state[name]))
