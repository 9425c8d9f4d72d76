"""Fit weights that were trained elsewhere, as a checkpoint for ``-pretrained_weights``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from timm.models import adapt_input_conv, load_state_dict
from torch import nn

from nnunetv2_cls import defaults
from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.network import configured_network
from nnunetv2_cls.planning import adapted_plans, load_plans, preprocessed_folder

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Ends of the names of BatchNorm's buffers, which a network with GroupNorm does not have."""


def write_pretrained(
    dataset: str | int,
    source: str | Path,
    output: str | Path,
    *,
    configuration: str = defaults.CONFIGURATION,
    plans: str = defaults.PLANS,
    model: str | None = None,
) -> Path:
    """Write a checkpoint for ``-pretrained_weights``, as ``nnUNetv2_cls_pretrained`` does.

    ``nnUNetv2_train`` and ``nnUNetv2_train_federated`` start from it. The first convolution is
    adapted to the channels of the dataset; the head starts anew.

    Parameters
    ----------
    dataset
        Id or name of the dataset that will be trained on.
    source
        File with the weights of a timm or torchvision classifier, or the name of a timm model whose
        ImageNet weights are fetched.
    output
        Checkpoint to write; its folder is created if missing.
    configuration
        Configuration that will be trained.
    plans
        Name of the plans.
    model
        timm model of a trainer that sets its own, for example ``resnet50``; ``None`` for that of
        the plans.

    Returns
    -------
    Path
        The checkpoint.

    Raises
    ------
    ClsError
        If dataset, plans or configuration are unknown, the weights cannot be read or are of another
        architecture.
    """
    folder = preprocessed_folder(str(dataset))
    content = adapted_plans(load_plans(folder, plans), configuration, model, None)
    network = configured_network(
        PlansManager(content), configuration, load_json(str(folder / "dataset.json"))
    )
    fitted = fit_weights(network, read_weights(str(source)))
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"network_weights": fitted}, path)
    return path


def fit_weights(network: nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Fit the weights of an image classifier to a network of the same architecture.

    The first convolution is adapted to the network's channels as timm does (summed over RGB for one
    channel). The head is the network's own, freshly initialised.

    Parameters
    ----------
    network
        A timm classifier.
    weights
        Weights by name, of timm or torchvision, for RGB input and any number of classes.

    Raises
    ------
    ClsError
        If the weights are of another architecture.
    """
    config: dict[str, Any] = getattr(network, "default_cfg", None) or {}
    first, head = config.get("first_conv"), config.get("classifier")
    if not isinstance(first, str) or not isinstance(head, str):
        raise ClsError(f"{type(network).__name__} is no timm classifier: weights cannot be fitted.")
    initial = network.state_dict()
    fitted = {
        name: tensor
        if name.startswith(f"{head}.")
        else _fit_tensor(name, tensor, weights, is_first=name == f"{first}.weight")
        for name, tensor in initial.items()
    }
    _refuse_left_over(weights, initial, head)
    return fitted


def _fit_tensor(
    name: str, initial: torch.Tensor, weights: Mapping[str, torch.Tensor], *, is_first: bool
) -> torch.Tensor:
    """Return the weights for one tensor of the network."""
    if name not in weights:
        raise ClsError(
            f"the weights lack {name}: they are of another architecture than the configuration."
        )
    tensor = weights[name]
    if is_first and tensor.shape[1] != initial.shape[1]:
        tensor = adapt_input_conv(initial.shape[1], tensor)
    if tensor.shape != initial.shape:
        raise ClsError(
            f"{name} has the shape {tuple(tensor.shape)}, the configuration's network needs "
            f"{tuple(initial.shape)}: the weights are of another architecture."
        )
    return tensor


def _refuse_left_over(
    weights: Mapping[str, torch.Tensor], network: Mapping[str, torch.Tensor], head: str
) -> None:
    """Refuse weights of which the network has no use, apart from their head and statistics."""
    for name in weights:
        if (
            name not in network
            and not name.startswith(f"{head}.")
            and not name.endswith(_STATISTICS)
        ):
            raise ClsError(f"the configuration's network has no {name}: another architecture.")


def read_weights(source: str) -> dict[str, torch.Tensor]:
    """Read a file of timm or torchvision, or fetch the ImageNet weights of a timm model.

    Raises
    ------
    ClsError
        If ``source`` is neither a readable file nor a model whose weights can be fetched.
    """
    if Path(source).is_file():
        try:
            weights: dict[str, torch.Tensor] = load_state_dict(source, weights_only=True)
        except Exception as error:
            raise ClsError(f"-i {source} cannot be read as weights: {error}") from error
        return weights
    if not timm.is_model(source):
        raise ClsError(f"-i {source}: no such file, and no model of timm.")
    try:
        network: nn.Module = timm.create_model(source, pretrained=True)
    except Exception as error:  # whatever the hub's client raises
        raise ClsError(
            f"-i {source}: its weights cannot be fetched ({type(error).__name__}); download them "
            "elsewhere and give the file."
        ) from error
    return network.state_dict()
