"""Weights trained elsewhere, as a checkpoint that ``-pretrained_weights`` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from timm.models import adapt_input_conv, load_state_dict
from torch import nn

from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.network import build_network
from nnunetv2_cls.planning import adapted_plans, load_plans, preprocessed_folder

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def fit_weights(network: nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Fit the weights of an image classifier to a network of the same architecture.

    The first convolution is adapted to the network's channels as timm does (summed over RGB for one
    channel); the head is the network's own, freshly initialised.

    Parameters
    ----------
    network
        A timm classifier.
    weights
        Of timm or torchvision, with RGB input and any number of classes.

    Raises
    ------
    ClsError
        If they are of another architecture.
    """
    config: dict[str, Any] = getattr(network, "default_cfg", None) or {}
    first, head = config.get("first_conv"), config.get("classifier")
    if not isinstance(first, str) or not isinstance(head, str):
        raise ClsError(f"{type(network).__name__} is no timm classifier: weights cannot be fitted.")
    wanted = network.state_dict()
    fitted = {}
    for name, own in wanted.items():
        if name.startswith(f"{head}."):
            fitted[name] = own
            continue
        if name not in weights:
            raise ClsError(
                f"the weights lack {name}: they are of another architecture than the configuration."
            )
        tensor = weights[name]
        if name == f"{first}.weight" and tensor.shape[1] != own.shape[1]:
            tensor = adapt_input_conv(own.shape[1], tensor)
        if tensor.shape != own.shape:
            raise ClsError(
                f"{name} has the shape {tuple(tensor.shape)}, the configuration's network needs "
                f"{tuple(own.shape)}: the weights are of another architecture."
            )
        fitted[name] = tensor
    left = [
        name
        for name in weights
        if name not in wanted and not name.startswith(f"{head}.") and not name.endswith(_STATISTICS)
    ]
    if left:
        raise ClsError(f"the configuration's network has no {left[0]}: another architecture.")
    return fitted


def read_weights(source: str) -> dict[str, torch.Tensor]:
    """Read a file of timm or torchvision, or fetch ImageNet weights by timm's name.

    Raises
    ------
    ClsError
        If it is neither a readable file nor a name whose weights can be fetched.
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


def write_checkpoint(network: nn.Module, source: str, output: Path) -> None:
    """Write a checkpoint for ``-pretrained_weights`` of ``nnUNetv2_train`` and the federation.

    Parameters
    ----------
    network
        That will be trained.
    source
        See :func:`read_weights`.
    output
        File to write.

    Raises
    ------
    ClsError
        If the weights cannot be read or do not fit.
    """
    fitted = fit_weights(network, read_weights(source))
    output.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"network_weights": fitted}, output)


def configured_network(
    dataset: str, plans_name: str, configuration: str, model: str | None
) -> nn.Module:
    """Build the network that a configuration trains.

    Parameters
    ----------
    dataset, plans_name, configuration
        As for ``nnUNetv2_train``.
    model
        timm model of the trainer, where it sets its own; ``None`` for the plans'.

    Raises
    ------
    ClsError
        If dataset, plans or configuration are unknown, or cannot take the model.
    """
    folder = preprocessed_folder(dataset)
    plans = adapted_plans(load_plans(folder, plans_name), configuration, model, None)
    return build_network(
        PlansManager(plans), configuration, load_json(str(folder / "dataset.json"))
    )
