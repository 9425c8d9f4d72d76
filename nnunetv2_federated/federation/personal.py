"""Personal models: what a user chooses of them, and how a site chooses its own.

After the last round a site fine-tunes the global model on its own cases, and takes a mean of the
weights of both, as validates best there (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.choice import (
    Allowed,
    Choice,
    Choices,
    Count,
    default_of,
    names_of,
    record,
    spell_flag,
)
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.files import write_atomically
from nnunetv2_federated.federation.messages import DICE, FullValidation, PersonalReport

PERSONAL_FILE = "personal.json"
"""File beside a personal model's checkpoint that says how it was chosen; it is written last."""
GLOBAL = 0.0
"""Share of the fine-tuned weights in the global model."""
_FORMAT = 1


@record
class PersonalChoices(Choices):
    """Whether each site gets a personal model after the last round, and how."""

    group: ClassVar[str] = "personal models"

    personal: Annotated[
        Literal["off", "finetune"],
        Choice(
            "after the last round 'finetune' lets each site fine-tune the global model on its own "
            "cases, and keep the mean of both that validates best there; the result stays at the "
            "site"
        ),
    ] = "off"
    personal_iterations: Annotated[
        Annotated[int, Field(ge=1, le=10**6), Allowed("a whole number of at least 1")],
        Choice("training iterations of the fine-tuning", "N"),
    ] = 200
    personal_lr: Annotated[
        Annotated[float, Field(gt=0, le=1), Allowed("above 0 and at most 1")] | None,
        Choice(
            "learning rate at the start of the fine-tuning; it decays to 0",
            "X",
            unset="the initial one of the training",
        ),
    ] = None
    personal_min_cases: Annotated[
        Count,
        Choice(
            "a site with fewer validation cases tells nothing of its personal model but that it "
            "has one",
            "N",
        ),
    ] = 5

    def __post_init__(self) -> None:
        if self.personalises:
            return
        for name in names_of(PersonalChoices):
            value = getattr(self, name)
            if value != default_of(PersonalChoices, name):
                raise SettingsError(
                    f"{spell_flag(PersonalChoices, name)} {value}: is for personal models; give "
                    "--personal finetune, or leave it out."
                )

    @property
    def personalises(self) -> bool:
        """Whether each site gets a personal model."""
        return self.personal != "off"


def interpolate(global_weights: Vector, fine_tuned: Vector, alpha: float) -> Vector:
    """Return the mean of two models' weights.

    Parameters
    ----------
    global_weights, fine_tuned
        Weights, each of shape (parameters,).
    alpha
        Share of ``fine_tuned``; with 0 and 1 one of the two is returned, bit for bit.
    """
    if alpha == 0:
        return global_weights
    if alpha == 1:
        return fine_tuned
    mean: Vector = (1 - alpha) * global_weights + alpha * fine_tuned
    return mean.astype("float32", copy=False)


def choose_alpha(scores: Mapping[float, float | None]) -> float:
    """Return the share whose model validates best; the smallest one of several that are as good.

    The global model stays where its own score is not defined, as there is nothing to be better
    than.

    Parameters
    ----------
    scores
        By share of the fine-tuned weights, 0 among them: the headline metric of the validation,
        larger is better; ``None`` or NaN where it is not defined.
    """
    known = {alpha: s for alpha, s in scores.items() if s is not None and not math.isnan(s)}
    if GLOBAL not in known:
        return GLOBAL
    return min(known, key=lambda alpha: (-known[alpha], alpha))


@dataclass(frozen=True)
class PersonalChoice:
    """What a site found and chose; it stays there but for what :meth:`tell` returns."""

    cases: int
    """Validation cases that the choice was made on: of the label that fewest have. 0 if nothing
    could be compared, and the site keeps the global model."""
    metric: str
    """Headline metric of the trainer's full validation, ``Dice`` for nnU-Net's own."""
    scores: Mapping[float, float | None]
    """Metric by share of the fine-tuned weights; ``None`` where it is not defined."""

    @property
    def alpha(self) -> float:
        """Share of the fine-tuned weights in the personal model."""
        return choose_alpha(self.scores)

    def tell(self, site: str, *, min_cases: int, private: bool) -> PersonalReport:
        """Return what the server may know.

        Parameters
        ----------
        site
            Name of the site.
        min_cases
            With fewer validation cases nothing is told.
        private
            Whether the training is differentially private. Nothing is told then: the fine-tuned
            weights, and so their score, are an exact function of the patients.
        """
        before, after = self.scores.get(GLOBAL), self.scores.get(self.alpha)
        if private or self.cases < min_cases or before is None or after is None:
            return PersonalReport(site)
        return PersonalReport(site, self.cases, self.metric, before, after, self.alpha)


def choose_by(validations: Mapping[float, FullValidation]) -> PersonalChoice:
    """Choose between models by their full validations on the same cases.

    nnU-Net's Dice of a label is not defined where neither the references nor the predictions have
    it, and is 0 as soon as a model paints one voxel of it. So models are compared over the labels
    of which each of them has a value: to paint none is no worse than to paint a few.

    Parameters
    ----------
    validations
        By share of the fine-tuned weights, 0 among them.
    """
    first = validations[GLOBAL]
    metric = next(iter(first.foreground_mean), "")
    scores = {alpha: found.foreground_mean.get(metric) for alpha, found in validations.items()}
    cases = first.cases
    if metric == DICE:
        scores, cases = _over_common_labels(validations)
    return PersonalChoice(0 if scores[GLOBAL] is None else cases, metric, scores)


def _over_common_labels(
    validations: Mapping[float, FullValidation],
) -> tuple[dict[float, float | None], int]:
    """Return mean Dice over the labels that all models have, and the fewest cases of one."""
    means = [found.mean for found in validations.values()]
    common = [k for k in means[0] if all(mean[k][DICE][1] > 0 for mean in means)]
    if not common:
        return dict.fromkeys(validations), 0
    scores: dict[float, float | None] = {
        alpha: fmean(found.mean[k][DICE][0] for k in common) for alpha, found in validations.items()
    }
    return scores, int(min(mean[k][DICE][1] for mean in means for k in common))


def write_choice(folder: Path, choice: PersonalChoice, made_of: str) -> None:
    """Write what was found beside the checkpoint, which is complete by then.

    Parameters
    ----------
    folder
        nnU-Net's result folder of the personal model's fold.
    choice
        What was found.
    made_of
        Hash of all that the personal model follows from.
    """
    content = {
        "format": _FORMAT,
        "made_of": made_of,
        "cases": choice.cases,
        "metric": choice.metric,
        "alpha": choice.alpha,
        "scores": {f"{alpha:g}": score for alpha, score in choice.scores.items()},
    }
    write_atomically(folder / PERSONAL_FILE, json.dumps(content, indent=1))


def read_choice(folder: Path, made_of: str | None = None) -> PersonalChoice | None:
    """Read what :func:`write_choice` wrote.

    Parameters
    ----------
    folder
        nnU-Net's result folder of the personal model's fold.
    made_of
        Hash of what the model has to follow from; ``None`` for whatever is there.

    Returns
    -------
    PersonalChoice or None
        ``None`` if there is no personal model, its file cannot be read, or it follows from
        something else: it is then made again.
    """
    try:
        content = json.loads((folder / PERSONAL_FILE).read_text("utf-8"))
        if content["format"] != _FORMAT or made_of not in (None, content["made_of"]):
            return None
        scores = {
            float(alpha): None if score is None else float(score)
            for alpha, score in content["scores"].items()
        }
        return PersonalChoice(int(content["cases"]), str(content["metric"]), scores)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return None


def describe_personal(report: PersonalReport) -> str:
    """Say in one line what a site's personal model brings there.

    Parameters
    ----------
    report
        Answer of the site.
    """
    if report.alpha is None or report.before is None or report.after is None:
        return f"personal model of {report.site}: done; the site tells no more of it"
    on = f"on {report.cases} validation case{'s' * (report.cases != 1)}"
    if report.alpha == GLOBAL:
        return (
            f"personal model of {report.site}: the global one, {report.metric} "
            f"{report.before:.4f} {on}; no fine-tuned model is better there"
        )
    return (
        f"personal model of {report.site}: {report.metric} {report.before:.4f} -> "
        f"{report.after:.4f} {on}, with {report.alpha:.0%} of the fine-tuned weights"
    )
