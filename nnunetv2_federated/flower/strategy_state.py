"""What a Flower strategy remembers between rounds, as tensors, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy


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
    """Take the arrays and numbers a strategy holds (momentum, second moments, norms)."""
    kept = (np.ndarray, ArrayRecord, dict, list, int, float, type(None))
    return {k: _encode(v) for k, v in vars(strategy).items() if isinstance(v, kept)}


def restore(strategy: Strategy, state: dict[str, Any]) -> None:
    """Put back what :func:`dump` took."""
    for key, value in state.items():
        setattr(strategy, key, _decode(value))
