"""What follows for all sites together from what each tells of its own cases."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nnunetv2_federated.federation.aggregation import weighted_mean
from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.federation.evaluation import (
    EvaluationOffer,
    EvaluationProposal,
    Metric,
    Moments,
    MomentsOfLabels,
    SiteEvaluation,
)

_NORMAL = 1.96
"""Half the width of a 95 % interval, in standard errors."""


@dataclass(frozen=True)
class Pooled:
    """A metric over the cases of several sites."""

    mean: float
    """Over all cases, as if they were in one place."""
    std: float | None
    """Standard deviation over patients, with ``patients - 1`` in the denominator."""
    low: float | None
    """Lower end of the 95 % interval of the mean, for these sites and other patients."""
    high: float | None
    cases: int
    patients: int
    sites: int
    """Number of sites that the mean is over; the others left the metric out."""


@dataclass(frozen=True)
class PooledLabels:
    """A model's metrics, or two models' differences, over the cases of all sites."""

    labels: Mapping[str, Mapping[Metric, Pooled | None]]
    foreground: Mapping[Metric, Pooled | None]
    """nnU-Net's ``foreground_mean``, the mean of the labels' means; ``None`` if one has none."""


def pool(parts: Sequence[Moments | None]) -> Pooled | None:
    """Pool one metric of several sites; ``None`` if all left it out.

    The mean weighs sites by their cases. Its standard error is that of a stratified mean, each site
    a stratum (Cochran 1977, Sampling Techniques, section 5.9).
    """
    known = [part for part in parts if part is not None]
    if not known:
        return None
    mean = weighted_mean((part.mean, part.cases) for part in known)
    return _around(mean, known)


def _around(mean: float, known: Sequence[Moments]) -> Pooled:
    """Return deviation and interval around a mean."""
    cases, patients = (sum(numbers) for numbers in _counts(known))
    error = math.sqrt(sum((p.cases / cases) ** 2 * p.variance / p.patients for p in known))
    centre = weighted_mean((part.mean, part.cases) for part in known)
    squares = sum(
        (p.patients - 1) * p.variance + p.patients * (p.mean - centre) ** 2 for p in known
    )
    return Pooled(
        mean=mean,
        std=math.sqrt(squares / (patients - 1)),
        low=mean - _NORMAL * error,
        high=mean + _NORMAL * error,
        cases=cases,
        patients=patients,
        sites=len(known),
    )


def _counts(known: Sequence[Moments]) -> tuple[list[int], list[int]]:
    return [part.cases for part in known], [part.patients for part in known]


def pool_labels(sites: Sequence[MomentsOfLabels]) -> PooledLabels:
    """Pool each label and metric of several sites, and the mean over labels.

    The mean over labels is nnU-Net's, of the pooled means of all labels; its interval comes from
    each site's variance of its own mean over labels.
    """
    labels = {
        label: {name: pool([site.labels[label][name] for site in sites]) for name in metrics}
        for label, metrics in sites[0].labels.items()
    }
    return PooledLabels(
        labels, {name: _pool_foreground(name, labels, sites) for name in _names(sites)}
    )


def _names(sites: Sequence[MomentsOfLabels]) -> list[Metric]:
    return list(sites[0].foreground)


def _pool_foreground(
    name: Metric,
    labels: Mapping[str, Mapping[Metric, Pooled | None]],
    sites: Sequence[MomentsOfLabels],
) -> Pooled | None:
    means = [metrics[name] for label, metrics in labels.items() if label != "0"]
    told = [site.foreground[name] for site in sites]
    known = [part for part in told if part is not None]
    if not known or not means or None in means:
        return None
    mean = math.fsum(part.mean for part in means if part is not None) / len(means)
    return _around(mean, known)


def mean_of_scores(sites: Sequence[SiteEvaluation], model: int) -> dict[str, float | None]:
    """Return a classifier's metrics, each the mean over sites weighted by their cases.

    It is not the metric of all cases together, which needs each case's probability.
    """
    told = [(site.scores[model], site.cases) for site in sites]
    names = dict.fromkeys(name for scores, _ in told if scores is not None for name in scores)
    means: dict[str, float | None] = {}
    for name in names:
        values = [(scores.get(name), cases) for scores, cases in told if scores is not None]
        mean = weighted_mean((value, cases) for value, cases in values if value is not None)
        means[name] = None if math.isnan(mean) else mean
    return means


def summary_of(pooled: PooledLabels) -> dict[str, Any]:
    """Return what nnU-Net's ``summary.json`` holds, without a single case in it."""

    def number(found: Pooled | None) -> float | None:
        return None if found is None else found.mean

    return {
        "foreground_mean": {name: number(found) for name, found in pooled.foreground.items()},
        "mean": {
            label: {name: number(found) for name, found in metrics.items()}
            for label, metrics in pooled.labels.items()
        },
        "metric_per_case": [],
    }


def check_answer(
    answer: SiteEvaluation,
    offer: EvaluationOffer,
    proposal: EvaluationProposal,
    labels: Collection[str],
) -> SiteEvaluation:
    """Return a site's answer after comparing it with what was asked, and with what it offered.

    Parameters
    ----------
    answer, offer
        What the site answered, and what it had offered before.
    proposal
        What it was asked.
    labels
        Labels and regions that a model of the proposal is compared on.

    Raises
    ------
    SiteError
        If it is of other cases, labels or metrics, or tells of fewer patients than agreed.
    """
    site = f"site {offer.site}"
    for field in ("site", "cases", "patients", "unit"):
        theirs, expected = getattr(answer, field), getattr(offer, field)
        if theirs != expected:
            raise SiteError(f"{site}: {field} of its evaluation is {theirs}, offered {expected}")
    classifies = proposal.models[0].classifies
    number = len(proposal.models)
    shape = (len(answer.models), answer.difference is not None, len(answer.scores))
    if shape != ((0, False, number) if classifies else (number, number > 1, 0)):
        raise SiteError(f"{site}: its evaluation is of other models than were sent")
    for part in _parts(answer):
        of_part = [*part.labels.values(), part.foreground]
        metrics = set(proposal.metrics)
        if set(part.labels) != set(labels) or any(m.keys() != metrics for m in of_part):
            raise SiteError(f"{site}: its evaluation has other labels or metrics than were asked")
    for moments in answer.all_moments():
        if moments.patients < proposal.min_cases:
            raise SiteError(
                f"{site}: tells of {moments.patients} patients, at least {proposal.min_cases} were "
                "agreed"
            )
    return answer


def _parts(answer: SiteEvaluation) -> list[MomentsOfLabels]:
    return [*answer.models, *([answer.difference] if answer.difference else [])]


def as_json(pooled: PooledLabels) -> dict[str, Any]:
    """Return pooled metrics as JSON."""
    return asdict(pooled)
