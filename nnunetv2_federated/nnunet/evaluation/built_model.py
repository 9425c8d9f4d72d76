"""A described model, made into networks by nnU-Net's and the trainer's own code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.evaluation.evaluate_predictions import label_or_region_to_key
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.evaluated_model import ModelDescription
from nnunetv2_federated.federation.weights_store import WeightsStore
from nnunetv2_federated.nnunet.data.dataset import Dataset, compared_labels
from nnunetv2_federated.nnunet.data.dataset_json import check_declaration
from nnunetv2_federated.nnunet.environment import quiet
from nnunetv2_federated.nnunet.evaluation.tester import validates_segmentations
from nnunetv2_federated.nnunet.planning.allowed_code import check_trainer
from nnunetv2_federated.nnunet.planning.memory_estimate import check_training
from nnunetv2_federated.nnunet.training.build_network import build_network
from nnunetv2_federated.nnunet.training.weights import load_vector, network_hash, num_values


@dataclass(frozen=True)
class Machine:
    """Where a model is built, and what it may name there."""

    device: str
    """``cpu``, ``cuda`` or ``mps``."""
    limit_gb: float | None = None
    """Most memory that the network may take; ``None`` for all there is."""
    allowed_modules: tuple[str, ...] = ()
    """Modules of the machine's own trainers and networks."""


@dataclass(frozen=True)
class Architecture:
    """What a network is built from; from any source, until it was checked."""

    plans: Mapping[str, Any]
    dataset_json: dict[str, Any]
    configuration: str
    trainer: str

    @classmethod
    def of(cls, model: ModelDescription) -> Architecture:
        """Return that of a described model."""
        return cls(model.plans, model.dataset_json, model.configuration, model.trainer)


@dataclass(frozen=True)
class BuiltModel:
    """Networks of a model's folds, for a tester that is not nnU-Net's predictor."""

    plans: PlansManager
    configuration: str
    dataset_json: dict[str, Any]
    networks: tuple[nn.Module, ...]
    """One for each fold, in evaluation mode on their device."""
    mirroring_axes: tuple[int, ...]
    threshold: float


def check_architecture(architecture: Architecture, site: str, machine: Machine) -> None:
    """Make sure that a model names allowed code only, and fits the machine.

    Parameters
    ----------
    architecture
        What the model is built from.
    site
        Name of the site, for the message.
    machine
        Where it would be built.

    Raises
    ------
    SiteError
        If it does not, or is the second stage of a cascade.
    """
    plans, dataset_json = dict(architecture.plans), architecture.dataset_json
    try:
        check_declaration(dataset_json, "dataset.json of the model")
    except SettingsError as error:
        raise SiteError(f"site {site}: {error}") from error
    check_training(
        Dataset("model", Path(), plans, dataset_json),
        architecture.configuration,
        architecture.trainer,
        site,
        batch_size=1,
        device=machine.device,
        limit_gb=machine.limit_gb if machine.device == "cuda" else None,
        allowed_modules=machine.allowed_modules,
    )
    chosen = PlansManager(plans).get_configuration(architecture.configuration)
    if chosen.previous_stage_name is not None:
        raise SiteError(
            f"site {site}: {architecture.configuration} needs the predictions of another model, "
            "the first stage of its cascade: evaluate a configuration that stands alone"
        )


def segments(trainer: str, machine: Machine) -> bool:
    """Whether models of a trainer segment images."""
    return validates_segmentations(check_trainer(trainer, machine.allowed_modules))


def network_of(architecture: Architecture, machine: Machine) -> nn.Module:
    """Build the network of a checked architecture, with random weights, on the CPU."""
    plans = PlansManager(deepcopy(dict(architecture.plans)))
    content, trainer = deepcopy(architecture.dataset_json), architecture.trainer
    configuration = architecture.configuration
    with quiet():
        channels = determine_num_input_channels(
            plans, plans.get_configuration(configuration), content
        )
        outputs = (
            plans.get_label_manager(content).num_segmentation_heads
            if segments(trainer, machine)
            else len(content["classes"])
        )
        return build_network(
            check_trainer(trainer, machine.allowed_modules),
            plans,
            configuration,
            channels,
            outputs,
            deep_supervision=False,
        )


def networks_of(
    model: ModelDescription, store: WeightsStore, site: str, machine: Machine
) -> Iterator[nn.Module]:
    """Build a network and load the weights of one fold after the other into it.

    Raises
    ------
    SiteError
        If it is another network than described.
    """
    network = network_of(Architecture.of(model), machine)
    if network_hash(network) != model.network_hash or num_values(network) != model.values:
        raise SiteError(
            f"site {site}: builds another network from these plans than the coordinator; compare "
            "the versions of nnU-Net"
        )
    for sha256 in model.weights:
        load_vector(network, store.get(sha256))
        yield network


def build_predictor(
    model: ModelDescription, store: WeightsStore, site: str, machine: Machine
) -> nnUNetPredictor:
    """Return nnU-Net's predictor for a model that segments.

    Raises
    ------
    SiteError
        As :func:`networks_of`.
    """
    parameters: list[dict[str, torch.Tensor]] = []
    network = nn.Module()
    for network in networks_of(model, store, site, machine):
        parameters.append(deepcopy(network.state_dict()))  # names of one tensor share it still
    plans = PlansManager(deepcopy(model.plans))
    with quiet():
        predictor = nnUNetPredictor(
            perform_everything_on_device=machine.device == "cuda",
            device=torch.device(machine.device),
            verbose=False,
            verbose_preprocessing=False,
            allow_tqdm=False,
        )
        predictor.manual_initialization(
            network,
            plans,
            plans.get_configuration(model.configuration),
            parameters,
            deepcopy(model.dataset_json),
            model.trainer,
            tuple(model.mirroring_axes) or None,
        )
    return predictor


def build_model(
    model: ModelDescription, store: WeightsStore, site: str, machine: Machine
) -> BuiltModel:
    """Return the networks of a model.

    Raises
    ------
    SiteError
        As :func:`networks_of`.
    """
    device = torch.device(machine.device)
    networks = [
        deepcopy(network).eval().to(device) for network in networks_of(model, store, site, machine)
    ]
    return BuiltModel(
        PlansManager(deepcopy(model.plans)),
        model.configuration,
        deepcopy(model.dataset_json),
        tuple(networks),
        tuple(model.mirroring_axes),
        model.threshold,
    )


def label_keys(model: ModelDescription) -> list[str]:
    """Return the labels or regions that a model's segmentations are compared on."""
    manager = PlansManager(deepcopy(model.plans)).get_label_manager(deepcopy(model.dataset_json))
    return [label_or_region_to_key(label) for label in compared_labels(manager)]
