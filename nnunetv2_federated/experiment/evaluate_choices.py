"""What a user can choose of an evaluation of trained models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from nnunetv2_federated.experiment.choices import (
    DeviceChoices,
    Fold,
    Networked,
    Quiet,
    SiteDatasets,
)
from nnunetv2_federated.federation.choice import (
    Allowed,
    Choice,
    FromList,
    Texts,
    record,
)
from nnunetv2_federated.federation.evaluation import FEWEST_CASES, Metric
from nnunetv2_federated.federation.payload import MOST_CASES

QUANTILES = (0.25, 0.5, 0.75)
"""Quantiles that are told where enough patients are, if none are chosen."""

_Quantile = Annotated[float, Field(gt=0, lt=1)]


@record
class EvaluateChoices(DeviceChoices, SiteDatasets, Networked, Quiet):
    """Choices of ``nnUNetv2_federated_evaluate``."""

    group: ClassVar[str] = "evaluation"

    model: Annotated[
        Path,
        Choice(
            "nnU-Net's result folder of a trained model, a fold_X of it, or an exported zip",
            "MODEL",
            positional=True,
        ),
    ]
    against: Annotated[
        Path | None,
        Choice(
            "second model, predicted on the same cases: paired differences", "MODEL", unset="none"
        ),
    ] = None
    folds: Annotated[
        Annotated[tuple[Fold, ...], FromList] | None,
        Choice("folds whose outputs are averaged", "FOLD", flag="-f", unset="all there are"),
    ] = None
    checkpoint: Annotated[str, Choice("file name of the checkpoint", "NAME", flag="-chk")] = (
        "checkpoint_final.pth"
    )
    configuration: Annotated[
        str | None,
        Choice(
            "configuration, where a zip has several", "CONFIGURATION", flag="-c", unset="the only"
        ),
    ] = None
    postprocessing: Annotated[
        bool, Choice("apply the postprocessing that was found for these folds, if there is any")
    ] = True
    test_set: Annotated[
        bool, Choice("evaluate on imagesTs and its labels in place of all cases of imagesTr")
    ] = False
    metrics: Annotated[
        Annotated[tuple[Metric, ...], FromList, Allowed("of Dice, IoU, NSD, HD95")] | None,
        Choice(
            "metrics of each label",
            "METRIC",
            unset="Dice; NSD and HD95 with it where MONAI is installed",
        ),
    ] = None
    min_cases: Annotated[
        Annotated[
            int,
            Field(ge=FEWEST_CASES, le=MOST_CASES),
            Allowed(f"a whole number of at least {FEWEST_CASES}"),
        ],
        Choice("fewest patients behind any number that a site tells", "N"),
    ] = 5
    quantiles: Annotated[
        Annotated[
            tuple[_Quantile, ...],
            FromList,
            Field(min_length=1, max_length=9),
            Allowed("1 to 9 numbers between 0 and 1"),
        ]
        | None,
        Choice(
            "quantiles over patients that every site has to tell",
            "Q",
            unset="the quartiles, at sites with enough patients",
        ),
    ] = None
    allowed_modules: Annotated[
        Texts,
        Choice(
            "modules of your own trainers and networks that a model may name, as in site.toml",
            "MODULE",
        ),
    ] = ()
    output: Annotated[
        Path,
        Choice("new folder for summary.json, evaluation.json and the report", "FOLDER", flag="-o"),
    ] = Path("evaluation")
