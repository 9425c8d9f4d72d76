"""Train a trial of a tuning to a rung, in this process, and score its global model."""

from __future__ import annotations

from pathlib import Path

from flwr.serverapp import Grid

from nnunetv2_federated.experiment.train import begun_run, global_trainer, train_rounds
from nnunetv2_federated.federation.errors import CheckpointError
from nnunetv2_federated.federation.objective import score_file, write_score
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.flower.deployment.server.serve import ServerSettings
from nnunetv2_federated.flower.sampling import validation_share
from nnunetv2_federated.flower.server_app import Server
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.environment import quiet
from nnunetv2_federated.nnunet.evaluation.scoring import score
from nnunetv2_federated.nnunet.training.build_trainer import build_trainer
from nnunetv2_federated.nnunet.training.global_model import GlobalModel
from nnunetv2_federated.nnunet.training.tracking import close_trackers


def train_to_rung(
    run: Run, place: Path, until: int, iterations: int, *, resume: bool, observer: Observer
) -> None:
    """Train until a round, and write the score of the model that is reached.

    nnU-Net's full validation is left out, also at the last round: no trial is judged by it.

    Parameters
    ----------
    run
        Run of the trial.
    place
        Folder of the trial, for the score.
    until
        Round to train to, counted from 1.
    iterations
        Validation iterations of the score, shared out to the sites by their validation cases;
        trainers that validate every case do so.
    resume
        Continue the run.
    observer
        Receives notes and progress.

    Raises
    ------
    FederationError
        As :func:`.train` does.
    """
    with quiet():
        trainer = build_trainer(run, load_dataset(run.dataset, run.plans_name))
    train_rounds(run, trainer, resume=resume, observer=observer, until=until)
    close_trackers(trainer)
    del trainer  # its network leaves the memory to the next
    model = GlobalModel(run)
    state = model.load_state()
    if state is None or len(state.rounds) != until:
        raise CheckpointError(f"{model.folder}: its state is not that of round {until}.")
    own = None if model.val_iterations is None else iterations
    cases = {site.name: len(site.validation_cases) for site in run.sites}
    found = score(run, state.weights, validation_share(own, cases))
    write_score(score_file(place, until), found)
    observer.say(f"scored {found.value:.4f} after round {until} of {run.settings.rounds}")


def train_at_sites(
    run: Run,
    place: Path,
    until: int,
    iterations: int,
    *,
    server: ServerSettings,
    grid: Grid,
    resume: bool,
    observer: Observer,
) -> None:
    """Do what :func:`train_to_rung` does with sites on other machines, which also score.

    Parameters
    ----------
    run
        Run of the trial, with the study that sites have approved.
    place, until, iterations, resume, observer
        As of :func:`train_to_rung`.
    server, grid
        Credentials of the server, and what reaches the sites.

    Raises
    ------
    FederationError
        As :func:`.train` does; or if a site does not score the model.
    """
    with begun_run(run, resume=resume, observer=observer, server=server) as folder:
        observer.run_prepared(run, folder)
        with global_trainer(run) as trainer:
            coordinator = Server(grid, run, GlobalModel(run, trainer), observer)
            coordinator.run(until)
            write_score(score_file(place, until), coordinator.score(iterations))
