"""BatchNorm that stays at a site while the other weights are replaced."""

from __future__ import annotations

import numpy as np
from torch import nn

from nnunetv2_federated.nnunet.training.weights import (
    batchnorm_tensors,
    load_vector,
    num_values,
    to_vector,
)


def test_local_batch_norm_is_kept_and_the_rest_replaced() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    names = set(batchnorm_tensors(network))
    assert names == {"1.weight", "1.bias", "1.running_mean", "1.running_var"}

    load_vector(network, np.full(num_values(network), 7, np.float32), keep=names)

    state = network.state_dict()
    assert state["1.weight"].tolist() == [1, 1, 1]
    assert state["1.running_mean"].tolist() == [0, 0, 0]
    assert state["0.weight"].unique().tolist() == [7]
    assert state["1.num_batches_tracked"] == 0
    assert to_vector(network).size == 12 + 6 + 4 + 6  # no counter in it
