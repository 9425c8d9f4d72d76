"""Choices of ``nnUNetv2_federated_tune``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from nnunetv2_federated.experiment.choices import (
    Dataset,
    DeviceChoices,
    Fold,
    ModelChoices,
    Networked,
    Quiet,
    SettingsFile,
    SiteChoices,
    SiteDatasets,
)
from nnunetv2_federated.federation.choice import Allowed, Choice, Count, FromList, record
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.halving import Brackets
from nnunetv2_federated.federation.settings import FederationSettings

Sampler = Literal["tpe", "random"]
_Limit = Annotated[float, Field(gt=0, allow_inf_nan=False), Allowed("a number above 0")]
_AtLeast2 = Annotated[int, Field(ge=2), Allowed("a whole number of at least 2")]


@record
class TuneChoices(
    ModelChoices,
    DeviceChoices,
    SiteChoices,
    SiteDatasets,
    FederationSettings,
    Networked,
    Quiet,
    SettingsFile,
):
    """Choices of ``nnUNetv2_federated_tune``."""

    group: ClassVar[str] = "tuning"

    dataset: Annotated[Dataset, Choice("id or name of the dataset", "DATASET", positional=True)]
    configuration: Annotated[str, Choice("configuration", "CONFIGURATION", positional=True)]
    fold: Annotated[
        Fold, Choice("fold by whose validation cases is chosen", "FOLD", positional=True)
    ]
    study: Annotated[Path, Choice("folder of the study; the same command goes on there", "FOLDER")]
    trials: Annotated[
        Count, Choice("trials to begin, the default settings being the first", "N")
    ] = 27
    brackets: Annotated[
        Brackets,
        Choice(
            "how trials share rounds: 'halving' begins all at the lowest rung, 'hyperband' cycles "
            "through brackets that begin at each rung, 'none' trains all to the end"
        ),
    ] = "halving"
    reduction: Annotated[
        _AtLeast2, Choice("of so many trials one goes on to the next rung", "N")
    ] = 3
    rungs: Annotated[
        Count, Choice("rungs: the lowest is a share of --reduction ** -(--rungs - 1)", "N")
    ] = 3
    bracket_size: Annotated[
        Count | None,
        Choice(
            "trials that begin together with --brackets halving; the sampler learns between such "
            "brackets",
            "N",
            unset="--reduction ** (--rungs - 1)",
        ),
    ] = None
    sampler: Annotated[
        Sampler, Choice("Optuna's sampler: 'tpe' learns from earlier brackets, 'random' does not")
    ] = "tpe"
    score_iterations: Annotated[
        Count,
        Choice(
            "validation iterations of a trial's score, shared out to the sites; all trials have "
            "the same batches. Classifiers score every validation case",
            "N",
        ),
    ] = 200
    workers: Annotated[
        Count, Choice("trials at a time, each in a process of its own, on the GPUs in turn", "N")
    ] = 1
    budget_rounds: Annotated[
        Count | None,
        Choice(
            "most rounds of all trials and of --nested; one with more local epochs or iterations "
            "than the default's counts accordingly",
            "N",
            unset="none",
        ),
    ] = None
    budget_gb: Annotated[
        _Limit | None,
        Choice(
            "most gigabytes to and from the sites, of all trials and of --nested", "X", unset="none"
        ),
    ] = None
    budget_hours: Annotated[
        _Limit | None,
        Choice(
            "most hours of rounds, of all trials and of --nested one after another",
            "X",
            unset="none",
        ),
    ] = None
    nested: Annotated[
        Annotated[tuple[Fold, ...], FromList, Allowed("numbers of folds")],
        Choice(
            "other folds, by which nothing is chosen: once all trials have ended, the setting that "
            "was found and the default are trained there to the end, and what both lose is shown",
            "FOLD",
            unset="none",
        ),
    ] = ()
    storage: Annotated[
        str | None,
        Choice(
            "Optuna's database, such as postgresql+psycopg://user@host/name",
            "URL",
            unset="study.db in --study",
        ),
    ] = None
    export: Annotated[
        Path | None,
        Choice(
            "settings file for nnUNetv2_train_federated with what was found",
            "TOML",
            unset="best.toml in --study",
        ),
    ] = None
    search: Annotated[
        Mapping[str, Any],
        Choice(
            "settings to vary, each with a list of values or {low, high, log}; "
            '"STRATEGY.OPTION" is for trials of that strategy',
            table=True,
        ),
    ] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        FederationSettings.__post_init__(self)
        if self.server is not None and self.workers > 1:
            raise SettingsError(
                f"--workers {self.workers} --server: trials of sites on other machines are trained "
                "one after another; leave one of the two out."
            )
