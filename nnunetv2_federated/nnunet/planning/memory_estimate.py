"""Estimate the memory of a training or preprocessing before anything is allocated."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn
from torch.overrides import TorchFunctionMode

from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.nnunet.data.dataset import Dataset
from nnunetv2_federated.nnunet.environment import quiet
from nnunetv2_federated.nnunet.planning.allowed_arguments import MOST_BATCH, MOST_CHANNELS
from nnunetv2_federated.nnunet.planning.allowed_code import check_trainer
from nnunetv2_federated.nnunet.planning.checked_plans import check_plans, configuration_of
from nnunetv2_federated.nnunet.training.build_network import build_network
from nnunetv2_federated.nnunet.training.ranks import check_batch

logger = logging.getLogger(__name__)

_GIGABYTE = 2**30
_FLOAT32 = 4
_COPIES_OF_WEIGHTS = 4
"""Weights, gradient, and two of an optimizer such as Adam; SGD with momentum has one."""
_BATCHES_AT_ONCE = 8
"""nnU-Net's loaders queue at least six augmented batches; one is trained, one is being made."""
_BYTES_OF_RESAMPLING = 8 + 8 + 3 * 8
"""Bytes per voxel while nnU-Net resamples a channel: float64 image and result, and coordinates."""
_SHORT = 10_000
"""Longest sequence of numbers that is computed although the network is only estimated."""
_OURS = ("nnunetv2", "nnunetv2_cls", "nnunetv2_federated", "dynamic_network_architectures")


@dataclass(frozen=True)
class Memory:
    """Estimated memory of one training, in GB of 2**30 bytes."""

    network: float | None
    """Weights, gradients, optimizer and activations; ``None`` for a hospital's own network that
    cannot be built without memory."""
    data: float
    """Batches in the memory of the machine."""

    def __str__(self) -> str:
        network = "unknown" if self.network is None else f"{self.network:.1f} GB"
        return f"network {network}, batches {self.data:.1f} GB (estimated)"


def check_training(
    dataset: Dataset,
    configuration: str,
    trainer: str,
    site: str,
    *,
    batch_size: int | None = None,
    device: str = "cpu",
    limit_gb: float | None = None,
    allowed_modules: Sequence[str] = (),
    num_gpus: int = 1,
) -> Memory:
    """Make sure that a training runs allowed code only, and fits the machine.

    Parameters
    ----------
    dataset
        Dataset with the plans that would be trained.
    configuration
        Configuration of the plans.
    trainer
        Name of the trainer.
    site
        Name of the site, for the message.
    batch_size
        Batch size of the federation's settings; ``None`` for that of the plans.
    device
        ``cpu``, ``cuda`` or ``mps``.
    limit_gb
        Most that network and batches may each take, in GB; ``None`` for all that the device and the
        machine have.
    allowed_modules
        Modules of the hospital's own trainers and networks.
    num_gpus
        GPUs over which a batch is divided.

    Raises
    ------
    SiteError
        If the plans name code that is not allowed, the estimate is beyond the limit, or a GPU would
        get no part of a batch.
    """
    check_plans(dataset.plans, dataset.dataset_json, site, allowed_modules)
    try:
        trained_by = check_trainer(trainer, allowed_modules)
        plans = _as_trained(dataset.plans, configuration, trained_by, batch_size)
        # once more: the trainer is allowed code, but the plans that it returns may name any other
        check_plans(plans, dataset.dataset_json, site, allowed_modules)
        task = _Task.of(plans, dataset.dataset_json, configuration)
        machine = machine_gb() if limit_gb is None else limit_gb
        data = task.data_gb  # of all GPUs together
        _require("a batch", task, data, machine)
        check_batch(num_gpus, task.batch_size)
        task = replace(task, batch_size=math.ceil(task.batch_size / num_gpus))
        network = _network_gb(trained_by, task, half=device == "cuda")
        if network is not None:
            most = device_gb(device) if limit_gb is None else limit_gb
            _require("the network", task, network, most)
    except (SettingsError, ValueError) as error:
        raise SiteError(f"site {site}: {error}") from error
    return Memory(network, data)


def check_preprocessing(
    plans: Mapping[str, Any],
    configurations: Sequence[str],
    shape: Sequence[int],
    spacing: Sequence[float],
    *,
    site: str,
    limit_gb: float | None = None,
) -> None:
    """Make sure that resampling one case of a site to the plans' spacings fits the machine.

    Parameters
    ----------
    plans
        Plans that :func:`.checked_plans.check_plans` has checked.
    configurations
        Configurations that would be preprocessed.
    shape
        Shape of the case, (channels, z, y, x).
    spacing
        Spacing of the case, (z, y, x) in mm.
    site
        Name of the site, for the message.
    limit_gb
        Most memory that resampling may take, in GB; ``None`` for all that the machine has.

    Raises
    ------
    SiteError
        If the case does not fit.
    """
    most = machine_gb() if limit_gb is None else limit_gb
    for name in configurations:
        try:
            target = configuration_of(plans, name)["spacing"]
        except SettingsError as error:
            raise SiteError(f"site {site}: refused plans: {error}") from error
        order = plans.get("transpose_forward", range(len(spacing)))
        voxels = resampled_voxels(shape[1:], spacing, order, target)
        gigabytes = voxels * (_FLOAT32 * shape[0] + _BYTES_OF_RESAMPLING) / _GIGABYTE
        if gigabytes > most:
            raise SiteError(
                f"site {site}: refused plans: configurations.{name}.spacing {target} would make "
                f"{voxels:.2g} voxels of a case, {gigabytes:.2g} GB to resample; allowed are "
                f"{most:.0f} GB"
            )


def resampled_voxels(
    shape: Sequence[int],
    spacing: Sequence[float],
    transpose_forward: Sequence[int],
    target: Sequence[float],
) -> float:
    """Return the number of voxels of an image after nnU-Net's resampling.

    2D configurations do not resample the first axis.

    Parameters
    ----------
    shape, spacing
        Shape and spacing in mm of the image as read, (z, y, x).
    transpose_forward
        Order of the axes in the plans.
    target
        Spacing of the configuration in mm, in the plans' order of axes.
    """
    axes = [(shape[axis], spacing[axis]) for axis in transpose_forward]
    unchanged = [present for _, present in axes[: len(axes) - len(target)]]
    return math.prod(
        max(1.0, n * present / new)
        for (n, present), new in zip(axes, [*unchanged, *target], strict=True)
    )


def machine_gb() -> float:
    """Return the memory of this machine, in GB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIGABYTE


def device_gb(device: str) -> float:
    """Return the memory of a CUDA device, in GB; for any other device, that of the machine."""
    if device == "cuda" and torch.cuda.is_available():
        total: int = torch.cuda.get_device_properties(0).total_memory
        return total / _GIGABYTE
    return machine_gb()


@dataclass(frozen=True)
class _Task:
    """What a network is built for: plans, configuration and sizes."""

    plans: PlansManager
    configuration: str
    batch_size: int
    patch: tuple[int, ...]
    channels: int
    classes: int

    @classmethod
    def of(
        cls, plans: dict[str, Any], dataset_json: Mapping[str, Any], configuration: str
    ) -> _Task:
        manager = PlansManager(plans)
        chosen = manager.get_configuration(configuration)
        content = deepcopy(dict(dataset_json))
        try:
            with quiet():
                channels = determine_num_input_channels(manager, chosen, content)
                heads = manager.get_label_manager(content).num_segmentation_heads
        except Exception as error:
            raise SettingsError(
                f"dataset.json does not declare channels and labels ({type(error).__name__})"
            ) from error
        classes = max(heads, len(content.get("classes", ())))
        if not (0 < channels <= MOST_CHANNELS and 0 < classes <= MOST_CHANNELS):
            raise SettingsError(
                f"dataset.json declares {channels} channels and {classes} labels: at most "
                f"{MOST_CHANNELS} of each"
            )
        return cls(
            manager, configuration, chosen.batch_size, tuple(chosen.patch_size), channels, classes
        )

    @property
    def data_gb(self) -> float:
        """Memory of the batches of images and targets that exist at the same time, in GB."""
        voxels = self.batch_size * math.prod(self.patch)
        return _BATCHES_AT_ONCE * voxels * (self.channels + 1) * _FLOAT32 / _GIGABYTE


def _as_trained(
    plans: Mapping[str, Any], configuration: str, trainer: type, batch_size: int | None
) -> dict[str, Any]:
    """Return a copy of plans as the trainer and the settings change them."""
    if configuration not in plans["configurations"]:
        raise SettingsError(
            f"configuration {clean(configuration, 80)} is unknown: the plans have "
            f"{', '.join(plans['configurations'])}"
        )
    change = getattr(trainer, "plans_of_trainer", None)
    copy = deepcopy(dict(plans))
    trained = copy if change is None else change(copy, configuration)
    if batch_size is not None:
        if not 0 < batch_size <= MOST_BATCH:
            raise SettingsError(f"batch size {batch_size}: must be 1 to {MOST_BATCH}")
        trained["configurations"][configuration]["batch_size"] = batch_size
    result: dict[str, Any] = trained
    return result


def _require(what: str, task: _Task, gigabytes: float, most: float) -> None:
    if gigabytes > most:
        raise SettingsError(
            f"refused plans: configurations.{task.configuration}: {what} with patch "
            f"{'x'.join(map(str, task.patch))} and batch size {task.batch_size} would take about "
            f"{gigabytes:.3g} GB; allowed are {most:.3g} GB"
        )


def _network_gb(trainer: type, task: _Task, *, half: bool) -> float | None:
    """Estimate the memory of the network, in GB.

    ``None`` for a hospital's own network that torch's meta device cannot build.
    """
    try:
        with quiet(), torch.device("meta"):
            return _count(_build(trainer, task), task, half=half)
    except Exception as error:
        if _is_own(trainer, task):
            logger.warning("the memory of the network cannot be estimated: %s", clean(error))
            return None
        raise SettingsError(
            f"refused plans: configurations.{task.configuration}: the network cannot be built and "
            f"run for patch {'x'.join(map(str, task.patch))} ({clean(error)})"
        ) from error


def _is_own(trainer: type, task: _Task) -> bool:
    """Whether the trainer's network, or the code that builds it, is the hospital's own."""
    builds = trainer.build_network_architecture.__module__  # type: ignore[attr-defined]
    network = task.plans.get_configuration(task.configuration).network_arch_class_name
    return any(module.partition(".")[0] not in _OURS for module in (builds, network))


def _build(trainer: Any, task: _Task) -> nn.Module:  # noqa: ANN401  # a trainer's class
    """Build the network as ``nnUNetTrainer.initialize`` does, on torch's meta device."""
    try:
        return _build_once(trainer, task)
    except NotImplementedError:  # it computes with values, which the meta device does not have
        with _ShortOnCpu():
            return _build_once(trainer, task).to("meta")


def _build_once(trainer: Any, task: _Task) -> nn.Module:  # noqa: ANN401  # a trainer's class
    plans = PlansManager(deepcopy(task.plans.plans))  # some trainers change them
    return build_network(
        trainer, plans, task.configuration, task.channels, task.classes, deep_supervision=True
    )


def _count(network: nn.Module, task: _Task, *, half: bool) -> float:
    """Return the memory of weights and of all that one forward pass keeps for the backward pass.

    In GB. Tensors that the backward pass needs are counted once for each storage, since views of a
    tensor share its memory.
    """
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    fixed = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in fixed:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    patch = torch.empty((task.batch_size, task.channels, *task.patch), device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network.train()(patch)
    # until here every storage was alive, so that no two of them had the same address
    del output
    # under autocast, which nnU-Net uses on GPUs, activations have 16 bits
    activations = sum(kept.values()) / (2 if half else 1)
    return (weights * _COPIES_OF_WEIGHTS + activations) / _GIGABYTE


class _ShortOnCpu(TorchFunctionMode):
    """Computes short sequences of numbers on the CPU: some networks derive widths from them."""

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401  # torch's protocol
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        del types
        given = kwargs or {}
        if func in (torch.arange, torch.linspace, torch.tensor) and "device" not in given:
            numbers = [n for n in (*args, *given.values()) if isinstance(n, int | float)]
            if all(abs(n) <= _SHORT for n in numbers):
                given = {**given, "device": "cpu"}
        return func(*args, **given)
