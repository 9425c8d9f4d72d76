"""From what the user chose to a comparison."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunetv2_federated.experiment.comparison import (
    CENTRALISED,
    Arm,
    Comparison,
    split_external,
)
from nnunetv2_federated.experiment.options import Options, partition_settings, pick
from nnunetv2_federated.experiment.resolve import build_run
from nnunetv2_federated.federation.case_table import read_case_table, table_column
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.partition import Sites
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.federation.settings import STRATEGIES, setting_names
from nnunetv2_federated.flower.launch import check_buildable, check_choices
from nnunetv2_federated.nnunet.data.dataset import (
    Dataset,
    check_configuration,
    find_trainer,
    load_dataset,
)
from nnunetv2_federated.nnunet.data.folds import draw_by_table, fold_split
from nnunetv2_federated.nnunet.data.integrity import check_dataset
from nnunetv2_federated.nnunet.data.site_cases import (
    partition_dataset,
    read_sites_file,
    saved_partition,
)
from nnunetv2_federated.nnunet.environment import environment, quiet
from nnunetv2_federated.nnunet.evaluation.tester import (
    raw_folder,
    test_images,
    tester_of,
    validates_segmentations,
)
from nnunetv2_federated.nnunet.training.build_trainer import build_trainer
from nnunetv2_federated.nnunet.training.server_lr import SUFFIX
from nnunetv2_federated.nnunet.training.trainer import federated_trainer

_DEFAULT_SEED = 12345
TEST_SET = "test set"
"""Site of test cases whose site is not known."""
_OF_A_TRAINING = ("trainer", "plans", "pretrained_weights")
_OF_A_PARTITION = (
    "sites",
    "partition",
    "alpha",
    "stratified_fraction",
    "min_cases",
    "case_table",
    "by",
)


def build_comparison(
    options: Options,
    name: str,
    configuration: str,
    folds: list[int | str],
    device: str,
    *,
    say: Callable[[str], None],
) -> Comparison:
    """Resolve every choice, and check every training, or find the first that cannot be.

    ``say`` takes what the user is better told, one line each.

    Raises
    ------
    SettingsError
        With one line about what came, what is allowed and how to mend it.
    """
    plans = options.get("plans", "nnUNetPlans")
    with _scratch_results() as scratch:
        dataset = load_dataset(name, plans)
        check_configuration(dataset, configuration)
        if dataset.plans["configurations"][configuration].get("previous_stage"):
            raise SettingsError(
                f"configuration {configuration} needs predictions of another one; compare "
                "configurations that stand alone."
            )
        draw_by_table(dataset, configuration, folds, options.get("case_table"))
        seeds = options.get("seeds") or [options.get("seed", _DEFAULT_SEED)]
        sites, external = _sites(options, dataset, configuration, seeds)
        comparison = Comparison(
            dataset=dataset.name,
            configuration=configuration,
            plans_name=plans,
            plans_hash=dataset.plans_hash,
            trainer=options.get("trainer", "nnUNetTrainer"),
            folds=folds,
            seeds=seeds,
            sites=sites,
            external=external,
            arms=_arms(options, dataset, configuration, seeds, sites=sites, external=external),
            test_set=bool(options.get("test_set")),
            test_sites=_test_sites(options),
        )
        check_tests(comparison, dataset)
        runs = [
            (arm, check_model(comparison, arm, seed, fold, device=device, scratch=scratch))
            for arm in comparison.arms
            for seed in seeds
            for fold in folds
        ]
        built = [
            check_buildable(run)  # seed and fold change nothing of what it looks at
            for run in {arm.name: run for arm, run in reversed(runs)}.values()
        ]
        segmentation = any(validates_segmentations(type(trainer)) for trainer in built)
        for line in check_dataset(dataset, configuration, folds, segmentation=segmentation):
            say(f"note: {line}")
        _give_all_the_same_epoch(runs, dataset)
    return comparison


@contextmanager
def _scratch_results() -> Iterator[Path]:
    """Let nnU-Net's trainers, which write when they are built, write into nothing."""
    with tempfile.TemporaryDirectory() as folder, environment(nnUNet_results=folder):
        yield Path(folder)


def _sites(
    options: Options, dataset: Dataset, configuration: str, seeds: Sequence[int]
) -> tuple[dict[str, Sites], Sites]:
    """Sites that train, by seed, and those that only test."""
    if not options.get("external_sites"):
        return {str(seed): _dealt(options, dataset, configuration, seed) for seed in seeds}, {}
    if options.get("partition_by_seed"):
        raise SettingsError(
            "--partition-by-seed --external-site: a site dealt anew for each seed is another site; "
            "leave one of the flags out."
        )
    found, external = split_external(
        _dealt(options, dataset, configuration, seeds[0]), options["external_sites"]
    )
    return {str(seed): found for seed in seeds}, external


def _dealt(options: Options, dataset: Dataset, configuration: str, seed: int) -> Sites:
    chosen = any(name in options for name in _OF_A_PARTITION)
    if "sites_file" in options:
        if chosen:
            raise SettingsError(
                "--sites-file and the flags of a partition both say which cases a site has: keep "
                "one of them."
            )
        return read_sites_file(options["sites_file"])
    if not chosen and saved_partition(dataset).is_file():
        return read_sites_file(saved_partition(dataset))
    trainer = federated_trainer(options.get("trainer", "nnUNetTrainer"))
    suggested = {} if chosen else getattr(trainer, "federation_defaults", {})
    given = {**pick(suggested, _OF_A_PARTITION), **options}
    if options.get("partition_by_seed"):
        given["seed"] = seed
    sites, _ = partition_dataset(
        dataset,
        configuration,
        partition_settings(given),
        given.get("case_table"),
        given.get("by"),
    )
    return sites


def _arms(
    options: Options,
    dataset: Dataset,
    configuration: str,
    seeds: Sequence[int],
    *,
    sites: dict[str, Sites],
    external: Sites,
) -> list[Arm]:
    """Every arm, with the flags it is trained with."""
    kinds = options.get("arms") or ["local", "federated", "centralised"]
    common = pick(options, (*setting_names(), *_OF_A_TRAINING))
    common.pop("seed", None)
    common.setdefault("trainer", "nnUNetTrainer")
    alone = {
        **{k: v for k, v in common.items() if k not in ("strategy", "strategy_options")},
        "sites_per_round": 1,
        "min_replies": 1,
    }
    arms = []
    if "local" in kinds:
        own = {**alone, **_table(options, "local")}
        names = sorted({site for found in sites.values() for site in found})
        arms += [Arm(f"local/{site}", own) for site in names]
    if "federated" in kinds:
        excluded = {case for cases in external.values() for case in cases}
        for name, own in _federated(options).items():
            partition = pick(own, _OF_A_PARTITION)
            flags = {k: v for k, v in {**common, **own}.items() if k not in partition}
            partitions = {}
            if partition:
                given = {
                    **pick(options, (*_OF_A_PARTITION, "partition_by_seed", "seed")),
                    **partition,
                }
                for seed in seeds:
                    dealt = _dealt(given, dataset, configuration, seed)
                    kept = {
                        s: [c for c in cases if c not in excluded] for s, cases in dealt.items()
                    }
                    partitions[str(seed)] = {s: cases for s, cases in kept.items() if cases}
            arms.append(Arm(f"federated/{name}", flags, partitions))
    if "centralised" in kinds:
        arms.append(Arm(CENTRALISED, {**alone, **_table(options, CENTRALISED)}))
    return arms


def _table(options: Options, kind: str) -> dict[str, Any]:
    """Return a table of the settings file, such as ``[centralised]``."""
    table: dict[str, Any] = dict(options.get(kind, {}))
    _check_keys(table, kind, (*setting_names(), *_OF_A_TRAINING))
    return table


def _federated(options: Options) -> dict[str, dict[str, Any]]:
    """Return the federated arms: of ``--strategies``, then of the tables ``[federated.NAME]``."""
    tables = options.get("federated", {})
    names = options.get("strategies") or ([] if tables else [options.get("strategy", "fedavg")])
    found: dict[str, dict[str, Any]] = {name: {"strategy": name} for name in names}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise SettingsError(
                f"[federated] {name}: expected a table for each arm, as [federated.fedprox]."
            )
        _check_keys(
            table, f"federated.{name}", (*setting_names(), *_OF_A_TRAINING, *_OF_A_PARTITION)
        )
        known = {"strategy": name} if name in STRATEGIES else {}
        found[name] = {**known, **table}
    return found


def _check_keys(table: dict[str, Any], name: str, known: Sequence[str]) -> None:
    for key in table:
        if key not in known or key == "seed":
            allowed = ", ".join(sorted(set(known) - {"seed"}))
            raise SettingsError(f"[{name}] {key} is unknown; known are {allowed}.")


def _test_sites(options: Options) -> dict[str, str]:
    """Site of every case that the case table knows, where it says the sites."""
    if not options.get("test_set") or options.get("partition") != "column":
        return {}
    return table_column(read_case_table(options["case_table"]), options["by"])


def test_cases(
    comparison: Comparison, dataset: Dataset, fold: int | str, seed: int
) -> dict[str, dict[str, str]]:
    """Cases a fold's models are tested on, ``Tr`` or ``Ts`` to case to site.

    The validation cases of the fold, or ``imagesTs``; and all cases of external sites.
    """
    external = {case: site for site, cases in comparison.external.items() for case in cases}
    if comparison.test_set:
        names = test_images(raw_folder(dataset))
        known = comparison.test_sites
        return {"Tr": external, "Ts": {case: known.get(case, TEST_SET) for case in names}}
    _, validation = fold_split(dataset, comparison.configuration, fold)
    owner = {case: site for site, cases in comparison.sites[str(seed)].items() for case in cases}
    return {"Tr": {**{case: owner[case] for case in validation if case in owner}, **external}}


def check_tests(comparison: Comparison, dataset: Dataset) -> None:
    """Raise ``SettingsError`` unless every test case has an image and its truth."""
    raw = raw_folder(dataset)
    tester = tester_of(find_trainer(comparison.trainer.removesuffix(SUFFIX)))
    for fold in comparison.folds:
        for subset, cases in test_cases(comparison, dataset, fold, comparison.seeds[0]).items():
            try:
                tester.references(raw, dataset.dataset_json, subset, list(cases))
            except (ValueError, KeyError) as error:
                raise SettingsError(
                    f"missing test labels: {error}; add them, or test on other cases."
                ) from error


def train_options(comparison: Comparison, arm: Arm, seed: int, sites_file: Path) -> Options:
    """Return the flags of one training."""
    return {
        **arm.options,
        "plans": comparison.plans_name,
        "seed": seed,
        "sites_file": sites_file,
    }


def check_model(
    comparison: Comparison, arm: Arm, seed: int, fold: int | str, *, device: str, scratch: Path
) -> Run:
    """Build the run of one training as the training will, or find why it cannot be."""
    path = scratch / "sites.json"
    if arm.kind == "local" and arm.name.removeprefix("local/") not in comparison.sites[str(seed)]:
        raise SettingsError(f"{arm.name}: the partition of seed {seed} has no such site.")
    path.write_text(json.dumps(comparison.sites_of(arm, seed)))
    options = train_options(comparison, arm, seed, path)
    run = build_run(options, comparison.dataset, comparison.configuration, fold, device)
    check_choices(run)
    return run


def _give_all_the_same_epoch(runs: Sequence[tuple[Arm, Run]], dataset: Dataset) -> None:
    """Set the iterations of an epoch where the trainer's own is a pass over the cases it has.

    A pass over all cases has more steps than one over a site's. The mean site's is taken for all.
    """
    for arm, run in runs:
        if "iterations_per_epoch" in arm.options:
            continue
        with quiet():
            trainer = build_trainer(run, dataset)
        if trainer.num_iterations_per_epoch is None:
            batch_size = trainer.configuration_manager.batch_size
            federated = [r for a, r in runs if a.kind == "federated"] or [run]
            sizes = [len(site.training_cases) for r in federated for site in r.sites]
            arm.options["iterations_per_epoch"] = math.ceil(sum(sizes) / len(sizes) / batch_size)
