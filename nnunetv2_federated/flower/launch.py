"""Prepare a federation and run it; what the commands, a notebook and a test call."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

from flwr.app import Context, RecordDict
from nnunetv2.paths import nnUNet_results

from nnunetv2_federated.federation.files import write_atomically
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.settings import RUN_FILE, Run
from nnunetv2_federated.flower.client_app import find_site, make_client_app
from nnunetv2_federated.flower.in_process import InProcessGrid
from nnunetv2_federated.flower.ray_backend import check_ray, run_with_ray
from nnunetv2_federated.flower.server_app import make_server_app
from nnunetv2_federated.flower.strategies import check_replies
from nnunetv2_federated.training.build import results_not_writable
from nnunetv2_federated.training.dataset import check_environment
from nnunetv2_federated.training.site import SitePool
from nnunetv2_federated.training.tracking import wanted_trackers
from nnunetv2_federated.training.trainer import FederatedRounds, federated_trainer

BACKENDS = ("in-process", "ray")


def result_folder(run: Run) -> Path:
    """``nnUNet_results/<Dataset>/<Trainer>__<Plans>__<configuration>/fold_X``."""
    check_environment()
    trainer = federated_trainer(run.trainer).__name__
    name = f"{trainer}__{run.plans}__{run.configuration}"
    return Path(nnUNet_results.require()) / run.dataset / name / f"fold_{run.fold}"


def federation_folder(run: Run) -> Path:
    """Where a run keeps its settings and everything it can be resumed from."""
    return result_folder(run) / "federation"


def check(run: Run, backend: str = "in-process") -> None:
    """Raise ``SettingsError`` for what is wanted and absent, or a strategy that cannot work."""
    wanted_trackers()
    if backend == "ray":
        check_ray()
    settings = run.settings
    fewest = settings.min_replies or settings.sites_per_round or len(run.site_names)
    check_replies(settings.strategy, settings.strategy_options, fewest)


def prepare(run: Run, *, backend: str = "in-process", resume: bool = False) -> Path:
    """Check what can be checked without training, and write ``federation/run.json``.

    Parameters
    ----------
    run
        Every choice made.
    backend
        ``in-process`` or ``ray``.
    resume
        Keep what an earlier run left, to continue it.

    Returns
    -------
    Path
        The run's folder, for :func:`launch`.

    Raises
    ------
    SettingsError
        If the strategy refuses its options, Ray or a tracker is wanted and absent, or the results
        folder cannot be written.
    """
    check(run, backend)
    folder = federation_folder(run)
    try:
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / RUN_FILE, run.to_json())
    except OSError as error:
        raise results_not_writable(error) from error
    return folder


def launch(
    run: Run,
    folder: Path,
    *,
    backend: str = "in-process",
    observer: Observer | None = None,
    trainer: FederatedRounds | None = None,
) -> Path:
    """Run a federation on this machine, or continue it where its folder says it stopped.

    Parameters
    ----------
    run
        Every choice made.
    folder
        What :func:`prepare` returned.
    backend
        ``in-process`` or ``ray``.
    observer
        Told what happens.
    trainer
        An uninitialised trainer to hold the global model, whose trackers stay open for its
        validation; ``None`` to build one.

    Returns
    -------
    Path
        nnU-Net's result folder of the fold.
    """
    server_app = make_server_app(observer, trainer)
    if backend == "ray":
        run_with_ray(server_app, folder, len(run.sites))
        return folder.parent
    pool = SitePool(observer)
    try:
        config = {"run-folder": str(folder)}
        grid = InProcessGrid(
            make_client_app(functools.partial(find_site, pool)), len(run.sites), config
        )
        server_app(grid, Context(1, 1, {}, RecordDict(), dict(config)))
    finally:
        pool.close()
        if run.disable_checkpointing:
            shutil.rmtree(folder / "sites", ignore_errors=True)
    return folder.parent
