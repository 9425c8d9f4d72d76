"""Resolve what a user chose to a comparison, with the run of each of its models."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from nnunetv2_federated.experiment.choices import (
    ArmChoices,
    CompareChoices,
)
from nnunetv2_federated.experiment.comparison import (
    Comparison,
    Model,
)
from nnunetv2_federated.experiment.comparison_arms import PlannedArm, plan_arms, plan_sites
from nnunetv2_federated.experiment.resolve import suggestions, weights_file
from nnunetv2_federated.federation.case_table import read_case_table, table_column
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.partition import Sites
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.flower.launch import check_buildable, check_choices
from nnunetv2_federated.nnunet.data.dataset import (
    Dataset,
    check_configuration,
    find_trainer,
    load_dataset,
)
from nnunetv2_federated.nnunet.data.folds import draw_by_table, fold_split
from nnunetv2_federated.nnunet.data.integrity import check_dataset
from nnunetv2_federated.nnunet.data.site_cases import sites_of_fold
from nnunetv2_federated.nnunet.environment import environment
from nnunetv2_federated.nnunet.evaluation.tester import (
    images_ts,
    raw_folder,
    tester_of,
    validates_segmentations,
)
from nnunetv2_federated.nnunet.training.optimizer import SUFFIX
from nnunetv2_federated.nnunet.training.trainer import FederatedRounds

TEST_SET = "test set"
"""Site of test cases whose site is not known."""

Runs = Mapping[Model, Run]


def build_comparison(
    choices: CompareChoices, device: str, *, say: Callable[[str], None]
) -> tuple[Comparison, Runs]:
    """Resolve every choice, and check every training, or find the first that cannot be.

    Parameters
    ----------
    choices
        What to compare.
    device
        Device to train on.
    say
        Receives what the user should know, one line each.

    Returns
    -------
    tuple
        The comparison, and the run of each of its models that is trained.

    Raises
    ------
    SettingsError
        With one line about what came, what is allowed and how to fix it.
    """
    configuration, folds = choices.configuration, list(choices.folds)
    with _scratch_results():
        dataset = load_dataset(choices.dataset, choices.plans)
        _check_alone(dataset, configuration)
        draw_by_table(dataset, configuration, folds, choices.case_table)
        seeds = list(choices.seeds or [choices.seed])
        sites, external = plan_sites(choices, dataset, seeds)
        arms = plan_arms(choices, dataset, seeds, sites=sites, external=external)
        comparison = Comparison(
            dataset=dataset.name,
            configuration=configuration,
            plans_name=choices.plans,
            plans_hash=dataset.plans_hash,
            trainer=choices.trainer,
            folds=folds,
            seeds=seeds,
            sites=sites,
            external=external,
            arms=[arm.arm() for arm in arms],
            test_set=choices.test_set,
            test_sites=_test_sites(choices),
        )
        check_tests(comparison, dataset)
        runs = _runs(comparison, arms, dataset, device)
        first = {model.arm: run for model, run in reversed(runs.items())}
        # seed and fold change nothing of what it looks at
        built = {arm: check_buildable(run) for arm, run in first.items()}
        segmentation = any(validates_segmentations(type(trainer)) for trainer in built.values())
        _check_ensemble(choices, segmentation=segmentation)
        for line in check_dataset(dataset, configuration, folds, segmentation=segmentation):
            say(line)
        equal = _with_the_same_epoch(arms, runs, built)
        if equal == arms:
            return comparison, runs
        comparison = dataclasses.replace(comparison, arms=[arm.arm() for arm in equal])
        return comparison, _runs(comparison, equal, dataset, device)


def _check_ensemble(choices: CompareChoices, *, segmentation: bool) -> None:
    if "ensemble" in choices.arms and not segmentation:
        raise SettingsError(
            "--arms ensemble: of a classifier there would be no threshold; leave it out."
        )


def _check_alone(dataset: Dataset, configuration: str) -> None:
    check_configuration(dataset, configuration)
    if dataset.plans["configurations"][configuration].get("previous_stage"):
        raise SettingsError(
            f"configuration {configuration} needs predictions of another one; compare "
            "configurations that stand alone."
        )


@contextmanager
def _scratch_results() -> Iterator[Path]:
    """Let nnU-Net's trainers, which write when they are built, write into a scratch folder."""
    with tempfile.TemporaryDirectory() as folder, environment(nnUNet_results=folder):
        yield Path(folder)


def _test_sites(choices: CompareChoices) -> dict[str, str]:
    """Return the site of every case of the case table, where the table says the sites."""
    table, column = choices.case_table, choices.by
    if not choices.test_set or choices.method != "column" or table is None or column is None:
        return {}
    return table_column(read_case_table(table), column)


def cases_to_test(
    comparison: Comparison, dataset: Dataset, fold: int | str, seed: int
) -> dict[str, dict[str, str]]:
    """Return the cases on which a fold's models are tested: ``Tr`` or ``Ts`` to case to site.

    The validation cases of the fold, or ``imagesTs``; and all cases of external sites.
    """
    external = {case: site for site, cases in comparison.external.items() for case in cases}
    if comparison.test_set:
        names = images_ts(raw_folder(dataset))
        known = comparison.test_sites
        return {"Tr": external, "Ts": {case: known.get(case, TEST_SET) for case in names}}
    _, validation = fold_split(dataset, comparison.configuration, fold)
    owner = {case: site for site, cases in comparison.sites[seed].items() for case in cases}
    return {"Tr": {**{case: owner[case] for case in validation if case in owner}, **external}}


def check_tests(comparison: Comparison, dataset: Dataset) -> None:
    """Raise ``SettingsError`` unless every test case has an image and its truth."""
    raw = raw_folder(dataset)
    tester = tester_of(find_trainer(comparison.trainer.removesuffix(SUFFIX)))
    for fold in comparison.folds:
        for subset, cases in cases_to_test(comparison, dataset, fold, comparison.seeds[0]).items():
            try:
                tester.references(raw, dataset.dataset_json, subset, list(cases))
            except (ValueError, KeyError) as error:
                raise SettingsError(
                    f"missing test labels: {error}; add them, or test on other cases."
                ) from error


def _runs(
    comparison: Comparison, arms: Sequence[PlannedArm], dataset: Dataset, device: str
) -> dict[Model, Run]:
    """Return the run of each model, as its training will have it."""
    chosen = {arm.name: arm.choices for arm in arms}
    runs = {}
    for model in comparison.models():
        if not comparison.arm(model.arm).trains:
            continue
        sites = _sites_of(comparison, model)
        runs[model] = model_run(
            chosen[model.arm].changed(seed=model.seed),
            dataset,
            comparison.configuration,
            model.fold,
            sites,
            device=device,
        )
        check_choices(runs[model])
    return runs


def _sites_of(comparison: Comparison, model: Model) -> Sites:
    arm = comparison.arm(model.arm)
    if arm.kind == "local" and arm.name.removeprefix("local/") not in comparison.sites[model.seed]:
        raise SettingsError(f"{arm.name}: the partition of seed {model.seed} has no such site.")
    return comparison.sites_of(arm, model.seed)


def model_run(
    choices: ArmChoices,
    dataset: Dataset,
    configuration: str,
    fold: int | str,
    sites: Sites,
    *,
    device: str,
) -> Run:
    """Return the run of one training on sites that are known.

    Parameters
    ----------
    choices
        What was chosen for the training; what is not chosen the trainer suggests, except how many
        sites train in a round.
    dataset, configuration, fold
        Dataset, configuration and fold of the training.
    sites
        Cases of each site, of all folds.
    device
        Device to train on.

    Raises
    ------
    SettingsError
        If the run cannot be as chosen.
    """
    suggested = suggestions(choices.trainer, FederationSettings)
    suggested.pop("sites_per_round", None)
    given = choices.part(FederationSettings).given()
    return Run(
        dataset=dataset.name,
        configuration=configuration,
        fold=fold,
        trainer=choices.trainer,
        plans_name=str(dataset.plans["plans_name"]),
        device=device,
        settings=FederationSettings(**{**suggested, **given}),
        sites=sites_of_fold(dataset, configuration, fold, sites),
        pretrained_weights=weights_file(choices),
    )


def _with_the_same_epoch(
    arms: Sequence[PlannedArm], runs: Runs, built: Mapping[str, FederatedRounds]
) -> list[PlannedArm]:
    """Set the iterations of an epoch where the trainer's own is a pass over the cases it has.

    A pass over all cases has more steps than one over a site's. The mean site's is taken for all.
    """
    federated = [run for model, run in runs.items() if model.arm.startswith("federated/")]
    equal = []
    for arm in arms:
        if not arm.arm().trains:
            equal.append(arm)
            continue
        own = next(run for model, run in runs.items() if model.arm == arm.name)
        iterations = _pass_over_a_site(own, federated or [own], built[arm.name])
        changes = {} if iterations is None else {"iterations_per_epoch": iterations}
        equal.append(dataclasses.replace(arm, choices=arm.choices.changed(**changes)))
    return equal


def _pass_over_a_site(run: Run, federated: Sequence[Run], trainer: FederatedRounds) -> int | None:
    """Return the iterations of a pass over the mean site's cases, where an epoch is a pass."""
    if run.settings.iterations_per_epoch is not None:
        return None
    if trainer.num_iterations_per_epoch is not None:
        return None
    sizes = [len(site.training_cases) for own in federated for site in own.sites]
    batch_size: int = trainer.configuration_manager.batch_size
    return math.ceil(sum(sizes) / len(sizes) / batch_size)
