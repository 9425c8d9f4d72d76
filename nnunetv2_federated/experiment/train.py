"""Train a run, or validate it again; commands, notebooks and comparisons call these functions."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from flwr.serverapp import Grid

from nnunetv2_federated.federation.choice import require
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.history import History, read_history
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.run import RUN_FILE, Run, read_run
from nnunetv2_federated.federation.settings import CHANGEABLE
from nnunetv2_federated.flower.deployment.server.serve import (
    ServerSettings,
    check_credentials,
    federation_grid,
)
from nnunetv2_federated.flower.launch import check, check_buildable, launch, prepare
from nnunetv2_federated.flower.server_app import Server
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.device import choose_device
from nnunetv2_federated.nnunet.environment import quiet
from nnunetv2_federated.nnunet.evaluation.validation import validate
from nnunetv2_federated.nnunet.process import prepare_process
from nnunetv2_federated.nnunet.summary import read_headline
from nnunetv2_federated.nnunet.training.build_trainer import build_trainer, configure
from nnunetv2_federated.nnunet.training.cascade import check_stages
from nnunetv2_federated.nnunet.training.global_model import GlobalModel
from nnunetv2_federated.nnunet.training.result_folder import (
    federation_folder,
    has_previous,
    no_earlier_run,
    one_run,
    put_back,
    result_folder,
    way_back,
)
from nnunetv2_federated.nnunet.training.tracking import close_trackers
from nnunetv2_federated.nnunet.training.trainer import FederatedRounds


class Headline(NamedTuple):
    """The metric a trained model is known by; nnU-Net's is Dice."""

    metric: str
    value: float


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A trained global model, in a result folder that ``nnUNetv2_predict`` uses as it is."""

    folder: Path
    """nnU-Net's result folder of the fold."""
    run: Run
    headline: Headline | None
    """First metric of the full validation; ``None`` if no site has validated."""

    @property
    def history(self) -> History:
        """What happened in every round, of ``federation.json``."""
        return read_history(self.folder)

    @property
    def curves(self) -> Path:
        """PNG of loss and metric by round."""
        return self.folder / "federation.png"


def train(
    run: Run,
    *,
    resume: bool = False,
    observer: Observer | None = None,
    backend: str = "in-process",
    server: ServerSettings | None = None,
    grid: Grid | None = None,
    best: bool = False,
    npz: bool = False,
    until: int | None = None,
) -> TrainedModel:
    """Check a run, train all its rounds, and validate the global model.

    An interrupted training (``KeyboardInterrupt`` in a notebook, a signal, a power cut) continues
    after its last finished round with ``resume``.

    Parameters
    ----------
    run
        Run to train.
    resume
        Continue the run where an earlier call stopped.
    observer
        Receives notes and progress.
    backend
        ``in-process``, or ``ray`` for several GPUs.
    server
        Address and credentials of the server, for a run with ``remote_sites``.
    grid
        Of :func:`.federation_grid`, to use a SuperLink that runs already; ``None`` to start one.
    best
        Validate ``checkpoint_best.pth`` in place of ``checkpoint_final.pth``.
    npz
        Save the softmax outputs of the validation.
    until
        Pause after this round, counted from 1, without a validation; ``resume`` goes on there, and
        the weights are in the end those of a training in one go. ``None`` to train all. Not with
        ``server``.

    Returns
    -------
    TrainedModel
        Result folder, history and headline metric; a model that is paused has none.

    Raises
    ------
    SettingsError
        If the run cannot be trained as asked; an earlier run in its folder is as it was.
    CheckpointError
        If what an earlier call saved cannot be used.
    RoundError
        If too few sites answered in a round.
    FederationError
        If a federation over a network was stopped, or its SuperLink failed.
    """
    observer = observer or Observer()
    check_pause(run, until)
    with begun_run(run, resume=resume, backend=backend, server=server, observer=observer) as folder:
        observer.run_prepared(run, folder)
        with global_trainer(run) as trainer:
            if server is not None:
                model = GlobalModel(run, trainer)
                with contextlib.ExitStack() as started:
                    if grid is None:
                        link = folder / "superlink"
                        grid = started.enter_context(federation_grid(run, link, server, observer))
                    Server(grid, run, model, observer).run()
                headline = _headline_on_disk(folder.parent)
            else:
                launch(
                    run, folder, backend=backend, observer=observer, trainer=trainer, until=until
                )
                if until is not None and until < run.settings.rounds:
                    return TrainedModel(folder.parent, run, None)
                cases = sum(len(site.validation_cases) for site in run.sites)
                observer.say(f"validating the global model on {cases} cases")
                headline = _validate(run, GlobalModel(run, trainer), best=best, npz=npz)
    return TrainedModel(folder.parent, run, headline)


def train_rounds(
    run: Run,
    trainer: FederatedRounds,
    *,
    resume: bool = False,
    observer: Observer | None = None,
    until: int | None = None,
) -> None:
    """Train the rounds of a run on this machine with a trainer of the caller, who validates it.

    Parameters
    ----------
    run
        Run to train.
    trainer
        Uninitialised trainer that holds the global model. Its trackers stay open, unless the
        training fails.
    resume
        Continue the run where an earlier call stopped.
    observer
        Receives notes and progress.
    until
        Pause after this round, counted from 1; ``None`` to train all.

    Raises
    ------
    FederationError
        As :func:`train` does.
    """
    observer = observer or Observer()
    check_pause(run, until)
    with begun_run(run, resume=resume, observer=observer) as folder:
        observer.run_prepared(run, folder)
        configure(trainer, run)
        try:
            launch(run, folder, observer=observer, trainer=trainer, until=until)
        except BaseException:
            close_trackers(trainer)
            raise


def prepare_run(
    run: Run,
    *,
    resume: bool = False,
    observer: Observer | None = None,
    backend: str = "in-process",
) -> Path:
    """Check a run and write its folder, for ``flwr run``; train nothing.

    Returns
    -------
    Path
        Folder that Flower's apps take as ``run-folder``.

    Raises
    ------
    SettingsError
        If the run cannot be trained as asked.
    """
    observer = observer or Observer()
    with begun_run(run, resume=resume, backend=backend, observer=observer) as folder:
        return folder


def evaluate(run: Run, *, best: bool = False, npz: bool = False) -> TrainedModel:
    """Validate a trained run again.

    Parameters
    ----------
    run
        Run whose sites are on this machine.
    best
        Validate ``checkpoint_best.pth`` in place of ``checkpoint_final.pth``.
    npz
        Save the softmax outputs.

    Raises
    ------
    SettingsError
        If the run has no final checkpoint, or its cases are at sites on other machines.
    """
    if run.remote_sites:
        raise SettingsError("--val with --server: the cases are at the sites; use --c.")
    prepare_process()
    choose_device(run.device)
    folder = result_folder(run)
    checkpoint = folder / "checkpoint_final.pth"
    if not checkpoint.is_file():
        raise SettingsError(f"--val: {checkpoint} does not exist; train first, without --val.")
    check_stages(run)
    with one_run(folder):
        model = GlobalModel(run)
        return TrainedModel(model.folder, run, _validate(run, model, best=best, npz=npz))


def check_pause(run: Run, until: int | None) -> None:
    """Refuse to pause where a run has no such round, or could not continue.

    Parameters
    ----------
    run
        Run to train.
    until
        Round to pause after, counted from 1; ``None`` not to pause.

    Raises
    ------
    SettingsError
        If the run cannot pause there.
    """
    if until is None:
        return
    rounds = run.settings.rounds
    require(
        1 <= until <= rounds, "--until-round", until, f"at least 1 and at most --rounds ({rounds})"
    )
    if run.remote_sites:
        raise SettingsError(
            f"--until-round {until} with --server: pauses trainings on this machine only; over a "
            "network stop the server (Ctrl-C) and go on with --c."
        )
    if run.disable_checkpointing:
        raise SettingsError(
            f"--until-round {until} --disable_checkpointing: nothing would be left to continue "
            "from; leave one of them out."
        )


@contextlib.contextmanager
def begun_run(
    run: Run,
    *,
    resume: bool,
    observer: Observer,
    backend: str = "in-process",
    server: ServerSettings | None = None,
) -> Iterator[Path]:
    """Check a run and hold its folder; leave the folder as it was if the training is refused."""
    prepare_process()
    choose_device(run.device)
    if resume:  # it removes nothing, and the run was checked when it began
        _check_continues(run)
        if run.num_gpus > 1:  # it may have begun with one
            check_buildable(run, backend)
    else:
        for line in check(run, backend):
            observer.note(line)
    _check_server(run, server)
    with one_run(result_folder(run)):
        folder = prepare(run, resume=resume)
        if has_previous(folder) and not resume:
            observer.note(
                "the earlier run is kept until the first round of this one is saved; to go back "
                f"before that: {way_back(folder)}"
            )
        try:
            yield folder
        except SettingsError:
            put_back(folder)
            raise


@contextlib.contextmanager
def global_trainer(run: Run) -> Iterator[FederatedRounds]:
    """Build the trainer that holds the global model; close its trackers at the end."""
    with quiet():
        trainer = build_trainer(run, load_dataset(run.dataset, run.plans_name))
    try:
        yield trainer
    finally:
        close_trackers(trainer)


def _check_server(run: Run, server: ServerSettings | None) -> None:
    """Refuse remote sites without a server, a server without them, and a site without a key."""
    if bool(run.remote_sites) != (server is not None):
        raise SettingsError(
            "a run needs a server if its sites are on other machines, and only then: it has "
            f"{len(run.remote_sites)} of them and {'a' if server else 'no'} server."
        )
    if server is not None:
        check_credentials(server, run.remote_sites)


def _check_continues(run: Run) -> None:
    """Refuse to continue an earlier run as another one."""
    folder = federation_folder(run)
    if not (folder / RUN_FILE).is_file():
        raise no_earlier_run(folder)
    other = find_other(run, read_run(folder))
    if other is not None:
        raise SettingsError(
            f"the run to continue in {folder} has other {other}; continue it as it was "
            "begun (read_run), or start anew without resume (--c)."
        )


def find_other(run: Run, stored: Run) -> str | None:
    """Return the first field in which a run is another than the one that was begun.

    Device, and settings that may change, are not looked at; of a study neither is its budget, as a
    study goes on with a larger one, which sites approve anew.
    """
    kept = {name: getattr(stored.settings, name) for name in CHANGEABLE}
    settings = dataclasses.replace(run.settings, **kept)
    study = run.study
    if study is not None and stored.study is not None:
        same = study.study_id == stored.study.study_id
        study = stored.study if same else study
    asked = dataclasses.replace(
        run, device=stored.device, num_gpus=stored.num_gpus, settings=settings, study=study
    )
    for field in dataclasses.fields(Run):
        if getattr(asked, field.name) != getattr(stored, field.name):
            return field.name
    return None


def _validate(run: Run, model: GlobalModel, *, best: bool, npz: bool) -> Headline:
    return Headline(*validate(run, model, best=best, npz=npz))


def trained_model(run: Run) -> TrainedModel:
    """Return what an earlier call trained and validated."""
    folder = result_folder(run)
    return TrainedModel(folder, run, _headline_on_disk(folder))


def _headline_on_disk(folder: Path) -> Headline | None:
    """Return the metric pooled over sites on other machines, which validated themselves."""
    if not (folder / "validation" / "summary.json").is_file():
        return None
    return Headline(*read_headline(folder))
