"""Choose the best configuration or ensemble and its postprocessing, of what was trained here."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_federated.experiment.choices import BestChoices
from nnunetv2_federated.experiment.resolve import networked, server_settings, sites_with_keys
from nnunetv2_federated.experiment.trained_predictions import (
    find_predictions,
    large_enough,
    read_trained,
)
from nnunetv2_federated.federation.agreement import hash_plans
from nnunetv2_federated.federation.best_configuration import (
    Best,
    Candidate,
    Summary,
    choose_best,
)
from nnunetv2_federated.federation.choosing import ChoiceProposal
from nnunetv2_federated.federation.errors import FederationError, SettingsError
from nnunetv2_federated.federation.messages import DICE, FullValidation
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.flower.deployment.server.serve_choice import Ask, choice_at_sites
from nnunetv2_federated.nnunet.data.dataset import (
    Dataset,
    compared_labels,
    find_trainer,
    load_dataset,
)
from nnunetv2_federated.nnunet.evaluation.best_files import Models, write_choice
from nnunetv2_federated.nnunet.evaluation.site_predictions import in_workers, labels_of
from nnunetv2_federated.nnunet.evaluation.tester import validates_segmentations
from nnunetv2_federated.nnunet.process import prepare_process
from nnunetv2_federated.nnunet.summary import pool_sites
from nnunetv2_federated.nnunet.training.optimizer import SUFFIX
from nnunetv2_federated.nnunet.training.packages import defining_packages
from nnunetv2_federated.nnunet.training.trainer import federated_trainer


@dataclass(frozen=True)
class Chosen:
    """The best configuration, and where it is written."""

    best: Best
    information: Path
    """nnU-Net's ``inference_information.json``."""
    instructions: Path
    """nnU-Net's ``inference_instructions.txt``: the commands that predict with what was chosen."""


def find_best_configuration(choices: BestChoices, say: Callable[[str], None]) -> Chosen:
    """Choose by nnU-Net's rules, on means that each site takes over its own validation cases.

    Parameters
    ----------
    choices
        Trained configurations and folds.
    say
        Receives what happens, one line each.

    Raises
    ------
    SettingsError
        If a fold is not trained and validated, or predictions are missing; nothing is written.
    """
    prepare_process()
    dataset = load_dataset(choices.dataset, choices.plans)
    if not validates_segmentations(find_trainer(choices.trainer.removesuffix(SUFFIX))):
        raise SettingsError(f"-tr {choices.trainer}: only segmentations are chosen from.")
    models = Models(
        dataset.name,
        federated_trainer(choices.trainer).__name__,
        choices.plans,
        choices.folds,
        dataset.plans,
        dataset.dataset_json,
    )
    configurations = choices.configurations or _trained(models, dataset)
    _check_once(configurations, choices.folds)
    ensembles = len(configurations) > 1 and not choices.disable_ensembling
    classes = compared_labels(models.label_manager)
    at_sites = _over_network if networked(choices) else _here
    with at_sites(choices, models, configurations, say, ensembles=ensembles) as ask:
        best = choose_best(
            configurations,
            {str(label): labels_of(label) for label in classes},
            tuple(int(label) for label in models.label_manager.foreground_labels),
            lambda candidate: _score(ask(candidate), candidate, models, say),
            ensembles=ensembles,
        )
    information = write_choice(models, best, classes, ensembles=ensembles)
    return Chosen(best, information, information.with_name("inference_instructions.txt"))


def _check_once(configurations: Sequence[str], folds: Sequence[object]) -> None:
    for flag, values in (("-c", configurations), ("-f", folds)):
        if not values or len(set(values)) < len(values):
            shown = " ".join(map(str, values))
            raise SettingsError(f"{flag} {shown}: name each once, and at least one.")


def _trained(models: Models, dataset: Dataset) -> tuple[str, ...]:
    """Return the configurations of the plans that have a result folder."""
    names = PlansManager(dict(dataset.plans)).available_configurations
    found = tuple(name for name in names if models.folder(name).is_dir())
    if not found:
        raise SettingsError(
            f"no configuration of {models.dataset} was trained with {models.trainer} and "
            f"{models.plans_name}: nnUNetv2_train_federated trains, -tr and -p say with what."
        )
    return found


@contextlib.contextmanager
def _here(
    choices: BestChoices,
    models: Models,
    configurations: Sequence[str],
    say: Callable[[str], None],
    *,
    ensembles: bool,
) -> Iterator[Ask]:
    """Measure the predictions of sites on this machine."""
    sites = find_predictions(models, configurations, ensembles=ensembles)
    sites = large_enough(sites, choices.min_cases, say)
    with in_workers() as starmap:
        yield lambda candidate: [site.score(candidate, starmap) for site in sites]


@contextlib.contextmanager
def _over_network(
    choices: BestChoices,
    models: Models,
    configurations: Sequence[str],
    say: Callable[[str], None],
    *,
    ensembles: bool,
) -> Iterator[Ask]:
    """Let sites on other machines measure the predictions that they kept."""
    runs = [
        read_trained(models, name, fold)
        for name, fold in itertools.product(configurations, models.folds)
    ]
    for run in runs:
        _check_remote(run, ensembles=ensembles)
    known = sites_with_keys(choices)
    took_part = {name for run in runs for name in run.remote_sites}
    folder = models.folder(configurations[0]).parent / "choice__superlink"
    proposal = _proposal(choices, models, runs, ensembles=ensembles)
    try:
        with choice_at_sites(
            folder,
            server_settings(choices),
            [name for name in known if name in took_part],
            proposal,
            [str(label) for label in compared_labels(models.label_manager)],
            wait_for_sites=choices.wait_for_sites,
            answer_deadline=choices.answer_deadline,
            say=say,
        ) as ask:
            yield ask
    except KeyboardInterrupt as stop:
        raise FederationError("stopped; the same command begins again") from stop


def _proposal(
    choices: BestChoices, models: Models, runs: Sequence[Run], *, ensembles: bool
) -> ChoiceProposal:
    run_ids: dict[str, list[str]] = {}
    for run in runs:
        run_ids.setdefault(run.configuration, []).append(run.run_id)
    return ChoiceProposal(
        dataset=models.dataset,
        trainer=choices.trainer,
        plans_name=models.plans_name,
        plans_hash=hash_plans(models.plans),
        queue={name: list(models.folds) for name in run_ids},
        ensembles=ensembles,
        min_cases=choices.min_cases,
        run_ids=run_ids,
        packages=defining_packages(models.plans, choices.trainer),
    )


def _check_remote(run: Run, *, ensembles: bool) -> None:
    name = f"{run.configuration} fold {run.fold}"
    if not run.remote_sites:
        raise SettingsError(
            f"{name} was trained on this machine: leave --server out to choose from it."
        )
    if run.settings.withholds:
        raise SettingsError(
            f"{name} was trained with --dp-validation withhold: its sites tell nothing of their "
            "validation cases."
        )
    if ensembles and not run.npz:
        raise SettingsError(
            f"{name} was trained without --npz, so that its sites have no softmax outputs for "
            "ensembles: choose --disable_ensembling, or train with --npz."
        )


def _score(
    answers: Sequence[FullValidation],
    candidate: Candidate,
    models: Models,
    say: Callable[[str], None],
) -> Summary:
    summary = pool_sites(answers)
    say(f"{_describe(candidate, models)}: {DICE} {summary['foreground_mean'][DICE]:.4f}")
    return summary


def _describe(candidate: Candidate, models: Models) -> str:
    name = models.name(candidate.configurations)
    kept = "; ".join(" ".join(map(str, labels)) for labels in candidate.removals)
    return f"{name}, largest component of {kept}" if kept else name
