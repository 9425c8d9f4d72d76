"""Arms of a comparison: what was chosen for each, and the sites it trains with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_federated.experiment.choices import (
    ARM_KINDS,
    DEALING,
    ArmChoices,
    CompareChoices,
    DealChoices,
    FederatedArmChoices,
    SiteChoices,
)
from nnunetv2_federated.experiment.comparison import (
    CENTRALISED,
    ENSEMBLE,
    PERSONAL,
    Arm,
    split_external,
)
from nnunetv2_federated.experiment.resolve import resolve_sites
from nnunetv2_federated.federation.choice import names_of, spell_key
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.partition import Sites
from nnunetv2_federated.federation.personal import PersonalChoices
from nnunetv2_federated.federation.settings import STRATEGIES
from nnunetv2_federated.nnunet.data.dataset import Dataset

_OF_SEVERAL = ("strategy", "strategy_options", *names_of(PersonalChoices))
"""Choices that mean nothing in a training with one site."""


@dataclass(frozen=True)
class PlannedArm:
    """An arm, and what was chosen for its trainings."""

    name: str
    choices: ArmChoices
    partitions: Mapping[int, Sites] = dataclasses.field(default_factory=dict)

    def arm(self) -> Arm:
        """Return the arm as the comparison's file has it."""
        return Arm(self.name, _as_json(self.choices), self.partitions)


def plan_sites(
    choices: CompareChoices, dataset: Dataset, seeds: Sequence[int]
) -> tuple[dict[int, Sites], Sites]:
    """Return the sites that train, by seed, and those that only test.

    Raises
    ------
    SettingsError
        If an external site is unknown, or the cases cannot be dealt as chosen.
    """
    if not choices.external_sites:
        return {seed: _dealt(choices, choices, dataset, seed) for seed in seeds}, {}
    if choices.partition_by_seed:
        raise SettingsError(
            "--partition-by-seed --external-site: a site dealt anew for each seed is another site; "
            "leave one of the flags out."
        )
    found, external = split_external(
        _dealt(choices, choices, dataset, seeds[0]), list(choices.external_sites)
    )
    return dict.fromkeys(seeds, found), external


def plan_arms(
    choices: CompareChoices,
    dataset: Dataset,
    seeds: Sequence[int],
    *,
    sites: Mapping[int, Sites],
    external: Sites,
) -> list[PlannedArm]:
    """Return every arm, with what was chosen for its trainings.

    Parameters
    ----------
    choices
        What to compare.
    dataset, seeds
        Dataset whose cases are dealt, and every seed that is trained with.
    sites
        Sites that train, by seed.
    external
        Sites that only test.

    Raises
    ------
    SettingsError
        If an arm cannot deal the cases as chosen.
    """
    plans: dict[str, Callable[[], list[PlannedArm]]] = {
        "local": lambda: _local_arms(choices, sites),
        ENSEMBLE: lambda: [_ensemble(choices)],
        "federated": lambda: _federated_arms(choices, dataset, seeds, sites, external),
        CENTRALISED: lambda: [PlannedArm(CENTRALISED, _alone(choices, choices.centralised))],
    }
    return [arm for kind in ARM_KINDS if kind in choices.arms for arm in plans[kind]()]


def _common(choices: CompareChoices) -> dict[str, Any]:
    """Return what was chosen for the trainings of all arms."""
    given = choices.part(ArmChoices).given()
    return {"trainer": choices.trainer, **{k: v for k, v in given.items() if k != "seed"}}


def _alone(choices: CompareChoices, table: ArmChoices) -> ArmChoices:
    """Return what was chosen for a training with one site: strategies are for several."""
    common = _common(choices).items()
    own = {k: v for k, v in common if k not in _OF_SEVERAL}
    return ArmChoices(**{**own, "sites_per_round": 1, "min_replies": 1, **table.given()})


def _ensemble(choices: CompareChoices) -> PlannedArm:
    """Return the arm of all local models together."""
    if "local" not in choices.arms:
        raise SettingsError("--arms ensemble: is of the local models; add local to --arms.")
    return PlannedArm(ENSEMBLE, _alone(choices, choices.local))


def _local_arms(choices: CompareChoices, sites: Mapping[int, Sites]) -> list[PlannedArm]:
    own = _alone(choices, choices.local)
    names = sorted({site for found in sites.values() for site in found})
    return [PlannedArm(f"local/{site}", own) for site in names]


def _federated_arms(
    choices: CompareChoices,
    dataset: Dataset,
    seeds: Sequence[int],
    sites: Mapping[int, Sites],
    external: Sites,
) -> list[PlannedArm]:
    arms = []
    for name, table in _federated_tables(choices).items():
        own = ArmChoices(**{**_common(choices), **table.part(ArmChoices).given()})
        partitions = {}
        if not table.chosen.isdisjoint(DEALING):
            partitions = {s: _own_sites(choices, table, dataset, s, external) for s in seeds}
        arms.append(PlannedArm(f"federated/{name}", own, partitions))
        if own.personalises:
            _check_personal(choices)
            dealt = partitions or sites
            names = sorted({site for found in dealt.values() for site in found})
            arms += [PlannedArm(f"{PERSONAL}/{name}/{site}", own, partitions) for site in names]
    return arms


def _check_personal(choices: CompareChoices) -> None:
    """Refuse to test personal models on what chose them."""
    if not choices.test_set:
        raise SettingsError(
            "--personal finetune: personal models are chosen by the fold's validation cases, so "
            "these would flatter them; add --test-set to test on imagesTs."
        )


def _federated_tables(choices: CompareChoices) -> dict[str, FederatedArmChoices]:
    """Return the federated arms: of ``--strategies``, then of the tables ``[federated.NAME]``."""
    tables = choices.federated
    names = choices.strategies or (() if tables else (choices.strategy,))
    found: dict[str, FederatedArmChoices] = {}
    for strategy in names:
        found[strategy] = FederatedArmChoices(strategy=strategy)
    for name, table in tables.items():
        known = {"strategy": name} if name in STRATEGIES else {}
        found[name] = FederatedArmChoices(**{**known, **table.given()})
    return found


def _own_sites(
    choices: CompareChoices,
    table: FederatedArmChoices,
    dataset: Dataset,
    seed: int,
    external: Sites,
) -> Sites:
    """Return the sites of an arm that deals the cases otherwise, without external cases."""
    given = choices.part(DealChoices).given()
    own = {name: value for name, value in table.given().items() if name in DEALING}
    dealt = _dealt(choices, SiteChoices(**{**given, **own}), dataset, seed)
    excluded = {case for cases in external.values() for case in cases}
    kept = {site: [c for c in cases if c not in excluded] for site, cases in dealt.items()}
    return {site: cases for site, cases in kept.items() if cases}


def _dealt(choices: CompareChoices, sites: SiteChoices, dataset: Dataset, seed: int) -> Sites:
    """Return the sites of a seed.

    Parameters
    ----------
    choices
        Those of the comparison.
    sites
        Those about sites, of the comparison or of one arm.
    dataset, seed
        Dataset whose cases are dealt; the seed counts with ``partition_by_seed``.
    """
    own = sites.part(SiteChoices)
    if choices.partition_by_seed:
        own = own.changed(seed=seed)
    return resolve_sites(own, dataset, choices.configuration, choices.trainer)


def _as_json(choices: ArmChoices) -> dict[str, Any]:
    """Return what was chosen, spelled as in a settings file."""
    given = {spell_key(ArmChoices, name): value for name, value in choices.given().items()}
    return {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
