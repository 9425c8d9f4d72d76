"""What can go wrong at a site, looked at before it takes part."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from pathlib import Path

import httpx
import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.finding import Finding, look
from nnunetv2_federated.federation.run import Run, SiteCases
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.site.new_key import identity
from nnunetv2_federated.flower.deployment.site.site_file import SiteSettingsFile
from nnunetv2_federated.nnunet.data.dataset import Dataset, check_configuration, load_dataset
from nnunetv2_federated.nnunet.data.folds import fold_of_site
from nnunetv2_federated.nnunet.data.integrity import inspect
from nnunetv2_federated.nnunet.environment import quiet
from nnunetv2_federated.nnunet.evaluation.tester import validates_segmentations
from nnunetv2_federated.nnunet.planning.allowed_code import check_trainer
from nnunetv2_federated.nnunet.planning.memory_estimate import check_training
from nnunetv2_federated.nnunet.training.build_trainer import build_trainer, move_output
from nnunetv2_federated.nnunet.training.cascade import check_stages
from nnunetv2_federated.nnunet.training.shared_memory import batch_bytes, check_shared_memory

_CLOCKS_MAY_DIFFER = 60.0
_WARN_DAYS = 30
_PATIENCE = 10.0
"""Seconds for one connection."""
_GIGABYTE = 2**30
_FREE_GIGABYTES = 5.0
_PACKAGES = ("nnunetv2-federated", "nnunetv2", "flwr", "torch")


@dataclass(frozen=True)
class Wanted:
    """What the site would train; the federation's settings are not known yet."""

    dataset: str
    plans_name: str
    configuration: str
    fold: int | str
    trainer: str
    device: str


def check_site(settings: SiteSettingsFile, wanted: Wanted) -> Iterator[Finding]:
    """Look at everything a site needs; yield what was found, in the order it is needed."""
    yield Finding("versions", True, ", ".join(f"{name} {version(name)}" for name in _PACKAGES))
    yield look("key", lambda: (settings.load_key(), str(settings.key))[1])
    yield look("to compare", lambda: _identity(settings))
    yield from _check_server(settings)
    yield look("disk", lambda: _disk(settings.work))
    dataset: list[Dataset] = []

    def find_dataset() -> str:
        found = load_dataset(wanted.dataset, wanted.plans_name)
        check_configuration(found, wanted.configuration)
        dataset.append(found)
        check_stages(_run(found, wanted))
        return f"{found.name} with {wanted.plans_name}"

    yield look("dataset", find_dataset)
    if not dataset:
        return
    trainer = _trainer(wanted, settings)
    segmentation = trainer is None or validates_segmentations(trainer)
    yield from inspect(dataset[0], wanted.configuration, [wanted.fold], segmentation=segmentation)
    yield look("plans", lambda: _plans(dataset[0], wanted, settings))
    yield look("shared memory", lambda: _shared_memory(dataset[0], wanted))
    yield look(f"one iteration on {wanted.device}", lambda: _iteration(dataset[0], wanted))


def _trainer(wanted: Wanted, settings: SiteSettingsFile) -> type | None:
    with contextlib.suppress(SettingsError):  # said with the plans
        return check_trainer(wanted.trainer, settings.allowed_modules)
    return None


def _identity(settings: SiteSettingsFile) -> str:
    """Say what the coordinator must see too, or somebody stands between the two."""
    marks = ", ".join(f"{what} {mark}" for what, mark in identity(settings).items())
    return f"by telephone, with what the coordinator sees: {marks}"


def _check_server(settings: SiteSettingsFile) -> Iterator[Finding]:
    server = settings.server
    reached = look("server", lambda: _reach(server))
    yield reached
    if not reached.good:
        return
    try:
        context = ssl.create_default_context(cadata=settings.ca.read_text())
    except (OSError, ValueError) as error:
        yield Finding("certificate", False, f"ca {settings.ca} cannot be read: {error}")
        return
    secured = look("certificate", lambda: _certificate(server, context))
    yield secured
    if secured.good:
        yield look("clock", lambda: _clock(server, context))


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
    """Room for weights, optimizer state of three rounds, and predictions."""
    rooms = {}
    for folder in (work.parent, Path(nnUNet_results.require())):
        folder.mkdir(parents=True, exist_ok=True)
        rooms[str(folder)] = shutil.disk_usage(folder).free / _GIGABYTE
    seen = ", ".join(f"{free:.0f} GB free in {folder}" for folder, free in rooms.items())
    if min(rooms.values()) < _FREE_GIGABYTES:
        raise SettingsError(f"{seen}: at least {_FREE_GIGABYTES:.0f} GB are needed")
    return seen


def _plans(dataset: Dataset, wanted: Wanted, settings: SiteSettingsFile) -> str:
    memory = check_training(
        dataset,
        wanted.configuration,
        wanted.trainer,
        settings.name,
        device=wanted.device,
        limit_gb=settings.limits.max_gpu_gb if wanted.device == "cuda" else None,
        allowed_modules=settings.allowed_modules,
    )
    configuration = PlansManager(dataset.plans).get_configuration(wanted.configuration)
    return (
        f"{wanted.plans_name} {wanted.configuration}, SHA-256 {dataset.plans_hash[:12]}, patch "
        f"{'x'.join(map(str, configuration.patch_size))}, batch {configuration.batch_size}; "
        f"channels {', '.join(map(str, dataset.declared['channel_names'].values()))}; labels "
        f"{', '.join(dataset.declared['labels'])}; {memory}"
    )


def _shared_memory(dataset: Dataset, wanted: Wanted) -> str:
    """Room for the batches of augmentation workers, with the plans' batch size."""
    plans = PlansManager(dataset.plans)
    configuration = plans.get_configuration(wanted.configuration)
    batch = batch_bytes(
        configuration.batch_size,
        configuration.patch_size,
        determine_num_input_channels(plans, configuration, dataset.dataset_json),
        plans.get_label_manager(dataset.dataset_json),
    )
    return check_shared_memory(batch, pinned=wanted.device == "cuda")


def _run(dataset: Dataset, wanted: Wanted) -> Run:
    training, validation = fold_of_site(dataset, wanted.configuration, wanted.fold)
    return Run(
        dataset=dataset.name,
        configuration=wanted.configuration,
        fold=wanted.fold,
        trainer=wanted.trainer,
        plans_name=wanted.plans_name,
        device=wanted.device,
        settings=FederationSettings(rounds=1, iterations_per_epoch=1, val_iterations=1),
        sites=(SiteCases("check", dataset.name, tuple(training), tuple(validation)),),
    )


def _iteration(dataset: Dataset, wanted: Wanted) -> str:
    """Train one iteration and leave nothing behind."""
    run = _run(dataset, wanted)
    training, validation = list(run.sites[0].training_cases), list(run.sites[0].validation_cases)
    folder = Path(nnUNet_results.require()) / ".preflight"
    try:
        with quiet():
            trainer = build_trainer(run, dataset)
            move_output(trainer, folder)
            trainer.disable_checkpointing = True
            trainer.site_cases = (training, validation or training)
            trainer.initialize()
            if wanted.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            loss = trainer.run_round(1e-6)
            seconds = time.perf_counter() - started
            trainer.close()
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
    seen = f"loss {loss:+.3f}, {seconds:.0f} s with one validation iteration and starting loaders"
    if wanted.device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory / _GIGABYTE
        used = torch.cuda.max_memory_allocated() / _GIGABYTE
        seen += f", {used:.1f} of {total:.1f} GB of {torch.cuda.get_device_name(0)}"
    return seen
