"""Prepare a federation and run it; what the commands, a notebook and a test call."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from flwr.app import Context, RecordDict

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.files import write_atomically
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.run import RUN_FILE, Run
from nnunetv2_federated.flower.client_app import find_site, make_client_app
from nnunetv2_federated.flower.in_process import InProcessGrid
from nnunetv2_federated.flower.ray_backend import check_ray, run_with_ray
from nnunetv2_federated.flower.server_app import make_server_app
from nnunetv2_federated.flower.strategies import check_replies
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.data.integrity import check_dataset
from nnunetv2_federated.nnunet.environment import environment
from nnunetv2_federated.nnunet.evaluation.tester import validates_segmentations
from nnunetv2_federated.nnunet.training.build_trainer import results_not_writable
from nnunetv2_federated.nnunet.training.cascade import check_stages
from nnunetv2_federated.nnunet.training.global_model import GlobalModel
from nnunetv2_federated.nnunet.training.private_trainer import check_privacy
from nnunetv2_federated.nnunet.training.ranks import check_batch, check_divisible
from nnunetv2_federated.nnunet.training.result_folder import begin, federation_folder
from nnunetv2_federated.nnunet.training.site_pool import DEFAULT_RESIDENT, SitePool
from nnunetv2_federated.nnunet.training.tracking import wanted_trackers
from nnunetv2_federated.nnunet.training.trainer import FederatedRounds, check_workers


def check(
    run: Run,
    backend: str = "in-process",
    coming: Mapping[str, Collection[str]] | None = None,
) -> list[str]:
    """Find what cannot be before anything is written.

    Parameters
    ----------
    run
        Run to train.
    backend
        ``in-process`` or ``ray``.
    coming
        Cases that a stage of a cascade will have predicted by then, see :func:`.check_stages`.

    Returns
    -------
    list of str
        Lines that the user should read before training.

    Raises
    ------
    SettingsError
        For what is wanted and absent, options the strategy refuses, a trainer or network that
        cannot be built, weights to start from that cannot be loaded, datasets that do not agree
        with themselves, stages of a cascade that lack each other's files, and too little shared
        memory.
    """
    return notes_on_datasets(run, check_buildable(run, backend, coming))


def notes_on_datasets(run: Run, trainer: FederatedRounds) -> list[str]:
    """Check that the datasets of a run agree with themselves.

    Parameters
    ----------
    run
        Run to train.
    trainer
        Its trainer, of :func:`check_buildable`.

    Returns
    -------
    list of str
        Lines that the user should read before training.

    Raises
    ------
    SettingsError
        If a dataset does not.
    """
    segmentation = validates_segmentations(type(trainer))
    notes = []
    for name in sorted({site.dataset for site in run.sites}):
        dataset = load_dataset(name, run.plans_name)
        notes += check_dataset(dataset, run.configuration, [run.fold], segmentation=segmentation)
    return notes


def check_buildable(
    run: Run,
    backend: str = "in-process",
    coming: Mapping[str, Collection[str]] | None = None,
) -> FederatedRounds:
    """Do what :func:`check` does, but for the datasets' content; return the trainer that was built.

    Raises
    ------
    SettingsError
        See :func:`check`.
    """
    check_choices(run, backend)
    check_stages(run, coming)
    with tempfile.TemporaryDirectory() as scratch, environment(nnUNet_results=scratch):
        model = GlobalModel(run)  # nnU-Net's trainers write when they are built
        if run.pretrained_weights is not None:
            model.load_pretrained(run.pretrained_weights)
    segmentation = validates_segmentations(type(model.trainer))
    check_divisible(run.num_gpus, private=run.settings.private, segmentation=segmentation)
    check_batch(run.num_gpus, model.trainer.configuration_manager.batch_size)
    check_privacy(run, model.trainer)
    if not run.remote_sites:
        alive = min(len(run.sites), run.settings.resident_trainers or DEFAULT_RESIDENT)
        # in Ray's actors each site looks for itself
        check_workers(model.trainer, alive if backend == "in-process" else 1)
    return model.trainer


def check_choices(run: Run, backend: str = "in-process") -> None:
    """Raise ``SettingsError`` for what is wanted and absent, or options the strategy refuses."""
    wanted_trackers()
    if backend == "ray":
        check_ray()
    settings = run.settings
    if settings.personalises:
        _check_personal(run)
    if settings.dp_trainable != "all" and run.pretrained_weights is None:
        raise SettingsError(
            f"--dp-trainable {settings.dp_trainable}: all other parameters would stay as random as "
            "they begin; give -pretrained_weights, or train all."
        )
    fewest = settings.min_replies or settings.sites_per_round or len(run.site_names)
    check_replies(settings.strategy, settings.strategy_options, fewest)


def _check_personal(run: Run) -> None:
    if run.fold == "all":
        raise SettingsError(
            "--personal finetune with fold all: each site would choose its model by cases that it "
            "was trained on; give a fold that leaves validation cases."
        )
    if run.disable_checkpointing:
        raise SettingsError(
            "--personal finetune with --disable_checkpointing: a personal model is a checkpoint; "
            "leave one of the two out."
        )


def prepare(run: Run, *, resume: bool = False) -> Path:
    """Write ``federation/run.json``; to be called after :func:`check`, within :func:`.one_run`.

    Parameters
    ----------
    run
        Every choice made.
    resume
        Keep what an earlier run left, to continue it. Otherwise that is set aside until the first
        round of this one is saved, see :func:`.result_folder.begin`.

    Returns
    -------
    Path
        The run's folder, for :func:`launch`.

    Raises
    ------
    SettingsError
        If the results folder cannot be written; an earlier run is as it was.
    """
    folder = federation_folder(run)
    try:
        if resume:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / RUN_FILE, run.to_json())
        else:
            begin(folder, run)
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
    until: int | None = None,
) -> Path:
    """Run a federation on this machine, or continue it where its folder says it stopped.

    Parameters
    ----------
    run
        Every choice made.
    folder
        Folder that :func:`prepare` returned.
    backend
        ``in-process`` or ``ray``.
    observer
        Called when rounds, sites and steps begin or end.
    trainer
        An uninitialised trainer to hold the global model, whose trackers stay open for its
        validation; ``None`` to build one.
    until
        Pause after this round, counted from 1; ``None`` to train all.

    Returns
    -------
    Path
        nnU-Net's result folder of the fold.
    """
    server_app = make_server_app(observer, trainer, until)
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
