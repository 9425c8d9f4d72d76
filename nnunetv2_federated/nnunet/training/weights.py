"""A network as one flat float32 vector, and a hash of what is in it.

``state_dict`` lists a tensor once for every module that holds it (nnU-Net's decoder holds its
encoder); the vector holds each tensor once. Integer buffers are counters, which stay at the site.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterator

import numpy as np
import torch
from torch import nn

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.errors import SiteError


def unwrap(network: nn.Module) -> nn.Module:
    """Return the module inside ``DistributedDataParallel`` and ``torch.compile``."""
    if isinstance(network, nn.parallel.DistributedDataParallel):
        network = network.module
    original = getattr(network, "_orig_mod", network)
    return original if isinstance(original, nn.Module) else network


def federated_tensors(network: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield parameters, then floating-point buffers, each once, in the network's own order."""
    module = unwrap(network)
    yield from module.named_parameters()
    yield from ((n, b) for n, b in module.named_buffers() if b.is_floating_point())


def local_buffers(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the integer buffers, which stay at a site."""
    return {n: b for n, b in unwrap(network).named_buffers() if not b.is_floating_point()}


def batchnorm_tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return weights, biases and running statistics of every BatchNorm, by name."""
    module = unwrap(network)
    norms = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    of_norms = {id(t) for m in norms for t in (*m.parameters(), *m.buffers())}
    return {name: t for name, t in federated_tensors(network) if id(t) in of_norms}


def network_hash(network: nn.Module) -> str:
    """Return the SHA-256 of names, shapes and types of the federated tensors."""
    listing = [[name, list(t.shape), str(t.dtype)] for name, t in federated_tensors(network)]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def num_values(network: nn.Module) -> int:
    """Return the length of the network's vector."""
    return sum(tensor.numel() for _, tensor in federated_tensors(network))


def to_vector(network: nn.Module) -> Vector:
    """Copy the federated tensors into one float32 vector, shape (parameters,)."""
    vector = np.empty(num_values(network), np.float32)
    start = 0
    for _, tensor in federated_tensors(network):
        values = tensor.detach().to("cpu", torch.float32).reshape(-1).numpy()
        vector[start : start + values.size] = values
        start += values.size
    return vector


@torch.no_grad()
def load_vector(network: nn.Module, vector: Vector, keep: Container[str] = frozenset()) -> None:
    """Copy a vector made by :func:`to_vector` into the network, in place.

    Parameters
    ----------
    network
        Network with the same federated tensors as the one the vector was made of.
    vector
        Weights, shape (parameters,).
    keep
        Names of tensors that are not changed.

    Raises
    ------
    SiteError
        If the vector's length is not the network's.
    """
    expected = num_values(network)
    if vector.shape != (expected,):
        raise SiteError(f"expected a vector of {expected} values, got shape {vector.shape}")
    start = 0
    for name, tensor in federated_tensors(network):
        values = torch.tensor(vector[start : start + tensor.numel()])
        if name not in keep:
            tensor.copy_(values.reshape(tensor.shape))
        start += tensor.numel()
