"""Several folds and configurations, trained one after another, or some at a time."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_federated.experiment.choices import QueueChoices, TrainChoices
from nnunetv2_federated.experiment.resolve import resolve
from nnunetv2_federated.federation.choice import names_of
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.queue import (
    Fold,
    Folds,
    id_in_queue,
    id_of_queue,
    trainings_of,
)
from nnunetv2_federated.federation.run import RUN_FILE, Run
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.nnunet.data.dataset import Dataset, check_planned, load_dataset
from nnunetv2_federated.nnunet.data.site_cases import sites_from_datasets, sites_of_fold
from nnunetv2_federated.nnunet.training.result_folder import (
    federation_folder,
    no_earlier_run,
    result_folder,
)
from nnunetv2_federated.nnunet.training.trainer import federated_trainer


@dataclasses.dataclass(frozen=True)
class Training:
    """One training of a queue."""

    run: Run
    begun: bool
    """Whether an earlier command began it, and this one continues it."""
    finished: bool
    """Whether an earlier command has trained and validated it."""


def resolve_queue(choices: TrainChoices) -> list[Training]:
    """Resolve every training of a queue, or find the first that cannot be.

    Parameters
    ----------
    choices
        What to train, with ``configurations`` and ``folds``. With ``c``, the trainings that were
        begun with these choices are returned as they were; the others are like them.

    Returns
    -------
    list of Training
        In the order in which they are trained: a stage of a cascade before the next one.

    Raises
    ------
    SettingsError
        With one line about what came, what is allowed and how to fix it.
    """
    if choices.prepare_only:
        raise SettingsError("--prepare-only: is for one training; leave -c and -f out.")
    dataset = load_dataset(choices.dataset, choices.plans)
    configurations = _in_order(choices.configurations or (), dataset)
    queue = dict.fromkeys(configurations, choices.folds or ())
    if choices.c:
        return _continued(choices, queue)
    queue_id = uuid.uuid4().hex
    trainings = []
    for configuration, fold in trainings_of(queue):
        run = resolve(_one_of(choices, configuration, fold))
        trainings.append(Training(_in_queue(run, queue, queue_id), begun=False, finished=False))
    return trainings


def queue_folder(run: Run) -> Path:
    """Return the folder for the files of a queue while it is trained."""
    trainer = federated_trainer(run.trainer).__name__
    return result_folder(run).parents[1] / f"queue__{trainer}__{run.plans_name}"


def coming_predictions(runs: Sequence[Run]) -> dict[str, set[str]]:
    """Return the cases that a cascade's next stage will find predicted, by dataset.

    Parameters
    ----------
    runs
        Runs of the stage before that are trained first.
    """
    coming: dict[str, set[str]] = {}
    for run in runs:
        for site in run.sites:
            coming.setdefault(site.dataset, set()).update(site.validation_cases)
    return coming


def previous_stage(run: Run) -> str | None:
    """Return the configuration whose predictions a run starts from; ``None`` for most."""
    dataset = load_dataset(run.dataset, run.plans_name)
    name: str | None = (
        PlansManager(dataset.plans).get_configuration(run.configuration).previous_stage_name
    )
    return name


def _in_order(configurations: Sequence[str], dataset: Dataset) -> list[str]:
    """Put each stage of a cascade before the next one, and leave the order otherwise."""
    plans = PlansManager(dataset.plans)
    ordered: list[str] = []

    def add(name: str) -> None:
        check_planned(dataset, name)
        before = plans.get_configuration(name).previous_stage_name
        if before in configurations and before not in ordered:
            add(before)
        if name not in ordered:
            ordered.append(name)

    for name in configurations:
        add(name)
    return ordered


def _one_of(choices: TrainChoices, configuration: str, fold: Fold) -> TrainChoices:
    given = {k: v for k, v in choices.given().items() if k not in names_of(QueueChoices)}
    return TrainChoices(**{**given, "configuration": configuration, "fold": fold})


def _in_queue(run: Run, queue: Mapping[str, Folds], queue_id: str) -> Run:
    run_id = id_in_queue(queue_id, run.configuration, run.fold) if run.remote_sites else ""
    return dataclasses.replace(run, queue=queue, run_id=run_id)


def _continued(choices: TrainChoices, queue: Mapping[str, Folds]) -> list[Training]:
    """Return the trainings as they were begun, and the others like them."""
    begun: dict[tuple[str, Fold], Run] = {}
    for configuration, fold in trainings_of(queue):
        target = _one_of(choices, configuration, fold)
        folder = federation_folder(_named(target))
        if not (folder / RUN_FILE).is_file():
            continue
        run = resolve(target)
        if dict(run.queue) != dict(queue):
            raise SettingsError(
                f"--c: {configuration} fold {fold} was not begun in this queue but by another "
                f"command; leave it out, or start anew without --c. Its run is {folder}."
            )
        begun[configuration, fold] = run
    if not begun:
        first = _one_of(choices, *next(trainings_of(queue)))
        raise no_earlier_run(federation_folder(_named(first)))
    like = next(iter(begun.values()))
    return [
        Training(begun[training], begun=True, finished=_is_finished(begun[training]))
        if training in begun
        else Training(_like(like, *training), begun=False, finished=False)
        for training in trainings_of(queue)
    ]


def _named(choices: TrainChoices) -> Run:
    """Return a run that has the result folder of what is chosen, and nothing else."""
    dataset = load_dataset(choices.dataset, choices.plans)
    return Run(
        dataset=dataset.name,
        configuration=choices.configuration,
        fold=choices.fold,
        trainer=choices.trainer,
        plans_name=choices.plans,
        device="cpu",
        settings=FederationSettings(),
        sites=(),
    )


def _is_finished(run: Run) -> bool:
    """Whether a run is trained to the end, and validated unless nothing may be told of that."""
    folder = result_folder(run)
    validated = (folder / "validation" / "summary.json").is_file()
    untold = bool(run.remote_sites) and run.settings.withholds
    return (folder / "checkpoint_final.pth").is_file() and (validated or untold)


def _like(begun: Run, configuration: str, fold: Fold) -> Run:
    """Return a run of the same queue that was not begun yet: the same choices, other cases."""
    sites = begun.sites
    if sites and any(site.dataset != begun.dataset for site in sites):
        names = [site.dataset for site in sites]
        sites = sites_from_datasets(names, configuration, fold, begun.plans_name)
    elif sites:
        held = {s.name: sorted({*s.training_cases, *s.validation_cases}) for s in sites}
        dataset = load_dataset(begun.dataset, begun.plans_name)
        sites = sites_of_fold(dataset, configuration, fold, held)
    run_id = begun.run_id
    if run_id:
        queue_id = id_of_queue(run_id, begun.configuration, begun.fold)
        run_id = id_in_queue(queue_id, configuration, fold)
    return dataclasses.replace(
        begun, configuration=configuration, fold=fold, sites=sites, run_id=run_id
    )
