"""Checks of what can go wrong at a site, made before it takes part."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from pathlib import Path

import httpx
from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_federated.federation.check import Check, run_check
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.site.new_key import identity
from nnunetv2_federated.flower.deployment.site.site_file import SiteSettingsFile
from nnunetv2_federated.flower.deployment.site.trial import (
    PreflightTarget,
    run_of,
    train_one_iteration,
)
from nnunetv2_federated.nnunet.data.dataset import Dataset, check_configuration, load_dataset
from nnunetv2_federated.nnunet.data.integrity import inspect
from nnunetv2_federated.nnunet.evaluation.tester import validates_segmentations
from nnunetv2_federated.nnunet.planning.allowed_code import check_trainer
from nnunetv2_federated.nnunet.planning.memory_estimate import check_training
from nnunetv2_federated.nnunet.training.cascade import check_stages
from nnunetv2_federated.nnunet.training.shared_memory import batch_bytes, check_shared_memory

_CLOCKS_MAY_DIFFER = 60.0
_WARN_DAYS = 30
_PATIENCE = 10.0
"""Seconds that one connection may take."""
_GIGABYTE = 2**30
_FREE_GIGABYTES = 5.0
_PACKAGES = ("nnunetv2-federated", "nnunetv2", "flwr", "torch")


def check_site(settings: SiteSettingsFile, target: PreflightTarget) -> Iterator[Check]:
    """Check everything a site needs, in the order in which it is needed."""
    yield Check("versions", True, ", ".join(f"{name} {version(name)}" for name in _PACKAGES))
    yield run_check("key", lambda: (settings.load_key(), str(settings.key))[1])
    yield run_check("to compare", lambda: _identity(settings))
    yield from _check_server(settings)
    yield run_check("disk", lambda: _disk(settings.work))
    dataset: list[Dataset] = []

    def find_dataset() -> str:
        found = load_dataset(target.dataset, target.plans_name)
        check_configuration(found, target.configuration)
        dataset.append(found)
        check_stages(run_of(found, target))
        return f"{found.name} with {target.plans_name}"

    yield run_check("dataset", find_dataset)
    if not dataset:
        return
    trainer = _trainer(target, settings)
    segmentation = trainer is None or validates_segmentations(trainer)
    yield from inspect(dataset[0], target.configuration, [target.fold], segmentation=segmentation)
    yield run_check("plans", lambda: _plans(dataset[0], target, settings))
    yield run_check("shared memory", lambda: _shared_memory(dataset[0], target))
    yield run_check(
        f"one iteration on {target.device}", lambda: train_one_iteration(dataset[0], target)
    )


def _trainer(target: PreflightTarget, settings: SiteSettingsFile) -> type | None:
    with contextlib.suppress(SettingsError):  # said with the plans
        return check_trainer(target.trainer, settings.allowed_modules)
    return None


def _identity(settings: SiteSettingsFile) -> str:
    """Return the fingerprints that the coordinator must see too.

    Where they differ, somebody stands between the two.
    """
    marks = ", ".join(f"{what} {mark}" for what, mark in identity(settings).items())
    return f"by telephone, with what the coordinator sees: {marks}"


def _check_server(settings: SiteSettingsFile) -> Iterator[Check]:
    server = settings.server
    reached = run_check("server", lambda: _reach(server))
    yield reached
    if not reached.ok:
        return
    try:
        context = ssl.create_default_context(cadata=settings.ca.read_text())
    except (OSError, ValueError) as error:
        yield Check("certificate", False, f"ca {settings.ca} cannot be read: {error}")
        return
    secured = run_check("certificate", lambda: _certificate(server, context))
    yield secured
    if secured.ok:
        yield run_check("clock", lambda: _clock(server, context))


def _reach(server: Address) -> str:
    try:
        socket.create_connection((server.host, server.port), timeout=_PATIENCE).close()
    except OSError as error:
        raise SettingsError(
            f"{server}: {error}; is the port right, the server started, the firewall open?"
        ) from error
    return f"{server} can be reached"


def _certificate(server: Address, context: ssl.SSLContext) -> str:
    with (
        socket.create_connection((server.host, server.port), timeout=_PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname=server.host) as secured,
    ):
        certificate = secured.getpeercert() or {}
    until = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    days = (until - time.time()) / 86400
    day = datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%d")
    seen = f"valid until {day}, {days:.0f} days"
    if days < _WARN_DAYS:
        raise SettingsError(f"{seen}: ask the coordinator to renew it")
    return seen


def _clock(server: Address, context: ssl.SSLContext) -> str:
    """Compare clocks: a signed request that is too old is refused."""
    try:
        response = httpx.get(f"https://{server}/v1/fleet/", verify=context, timeout=_PATIENCE)
    except httpx.HTTPError as error:
        raise SettingsError(str(error)) from error
    said = response.headers.get("date")
    if said is None:
        return "the server does not tell its time"
    seconds = time.time() - parsedate_to_datetime(said).timestamp()
    if abs(seconds) > _CLOCKS_MAY_DIFFER:
        raise SettingsError(f"{seconds:+.0f} s from the server's: set this machine's clock (NTP)")
    return f"{seconds:+.0f} s from the server's"


def _disk(work: Path) -> str:
    """Check the room for weights, the optimizer's state of three rounds, and predictions."""
    rooms = {}
    for folder in (work.parent, Path(nnUNet_results.require())):
        folder.mkdir(parents=True, exist_ok=True)
        rooms[str(folder)] = shutil.disk_usage(folder).free / _GIGABYTE
    seen = ", ".join(f"{free:.0f} GB free in {folder}" for folder, free in rooms.items())
    if min(rooms.values()) < _FREE_GIGABYTES:
        raise SettingsError(f"{seen}: at least {_FREE_GIGABYTES:.0f} GB are needed")
    return seen


def _plans(dataset: Dataset, target: PreflightTarget, settings: SiteSettingsFile) -> str:
    memory = check_training(
        dataset,
        target.configuration,
        target.trainer,
        settings.name,
        device=target.device,
        limit_gb=settings.limits.max_gpu_gb if target.device == "cuda" else None,
        allowed_modules=settings.allowed_modules,
        num_gpus=target.num_gpus,
    )
    configuration = PlansManager(dataset.plans).get_configuration(target.configuration)
    return (
        f"{target.plans_name} {target.configuration}, SHA-256 {dataset.plans_hash[:12]}, patch "
        f"{'x'.join(map(str, configuration.patch_size))}, batch {configuration.batch_size}; "
        f"channels {', '.join(map(str, dataset.declared['channel_names'].values()))}; labels "
        f"{', '.join(dataset.declared['labels'])}; {memory}"
    )


def _shared_memory(dataset: Dataset, target: PreflightTarget) -> str:
    """Check the room for batches of the augmentation's workers, with the plans' batch size."""
    plans = PlansManager(dataset.plans)
    configuration = plans.get_configuration(target.configuration)
    batch = batch_bytes(
        configuration.batch_size,
        configuration.patch_size,
        determine_num_input_channels(plans, configuration, dataset.dataset_json),
        plans.get_label_manager(dataset.dataset_json),
    )
    return check_shared_memory(batch, pinned=target.device == "cuda")
