"""A trainer's network, built without the trainer."""

from __future__ import annotations

import inspect
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn


def build_network(
    trainer: Any,  # noqa: ANN401  # a trainer's class
    plans: PlansManager,
    configuration: str,
    channels: int,
    classes: int,
    *,
    deep_supervision: bool,
) -> nn.Module:
    """Build the network as ``nnUNetTrainer.initialize`` and nnU-Net's predictor do.

    Parameters
    ----------
    trainer
        Class of the trainer.
    plans
        Plans; some trainers change them.
    configuration
        Configuration of the plans.
    channels, classes
        Number of inputs and of outputs.
    deep_supervision
        Whether the network returns its outputs at lower resolutions, too.
    """
    chosen = plans.get_configuration(configuration)
    # some trainers build from the plans, others from the class and the arguments in them
    first: tuple[Any, ...] = (plans, chosen)
    if "plans_manager" not in inspect.signature(trainer.build_network_architecture).parameters:
        first = (
            chosen.network_arch_class_name,
            chosen.network_arch_init_kwargs,
            chosen.network_arch_init_kwargs_req_import,
        )
    network: nn.Module = trainer.build_network_architecture(
        *first, channels, classes, deep_supervision
    )
    return network
