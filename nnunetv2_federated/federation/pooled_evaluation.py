"""What follows for all sites together from what each tells of its own cases."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunetv2_federated.federation.aggregation import weighted_mean
from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.federation.evaluation import (
    EvaluationOffer,
    EvaluationProposal,
    Metric,
    Moments,
    MomentsOfLabels,
    Scores,
    SiteEvaluation,
)

_NORMAL = 1.96
"""Half the width of a 95 % interval, in standard errors."""


@dataclass(frozen=True)
class Pooled:
    """A metric over the cases of several sites."""

    mean: float
    """Over all cases, as if they were in one place."""
    std: float
    """Standard deviation over patients, with ``patients - 1`` in the denominator."""
    low: float
    """Lower end of the 95 % interval of the mean, for these sites and other patients."""
    high: float
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
    known = _told(parts)
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
    told = [part.mean for part in means if part is not None]
    known = _told(site.foreground[name] for site in sites)
    if not known or not told or len(told) < len(means):
        return None
    return _around(math.fsum(told) / len(told), known)


def _told(parts: Iterable[Moments | None]) -> list[Moments]:
    return [part for part in parts if part is not None]


def mean_of_scores(sites: Sequence[SiteEvaluation], model: int) -> dict[str, float | None]:
    """Return a classifier's metrics, each the mean over sites weighted by their cases.

    It is not the metric of all cases together, which needs each case's probability.
    """
    told = [(site.scores[model] or {}, site.cases) for site in sites]
    names = dict.fromkeys(name for scores, _ in told for name in scores)
    return {name: _mean_of(name, told) for name in names}


def _mean_of(name: str, told: Sequence[tuple[Scores, int]]) -> float | None:
    values = ((scores.get(name), cases) for scores, cases in told)
    mean = weighted_mean((value, cases) for value, cases in values if value is not None)
    return None if math.isnan(mean) else mean


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
    if _shape(answer) != _shape_of_answers(proposal):
        raise SiteError(f"{site}: its evaluation is of other models than were sent")
    if not all(_fits(part, set(labels), set(proposal.metrics)) for part in _parts(answer)):
        raise SiteError(f"{site}: its evaluation has other labels or metrics than were asked")
    fewest = min((moments.patients for moments in answer.all_moments()), default=math.inf)
    if fewest < proposal.min_cases:
        raise SiteError(
            f"{site}: tells of {fewest} patients, at least {proposal.min_cases} were agreed"
        )
    return answer


def _shape(answer: SiteEvaluation) -> tuple[int, bool, int]:
    return len(answer.models), answer.difference is not None, len(answer.scores)


def _shape_of_answers(proposal: EvaluationProposal) -> tuple[int, bool, int]:
    number = len(proposal.models)
    return (0, False, number) if proposal.models[0].classifies else (number, number > 1, 0)


def _fits(part: MomentsOfLabels, labels: set[str], metrics: set[Metric]) -> bool:
    of_part = [*part.labels.values(), part.foreground]
    return set(part.labels) == labels and all(names.keys() == metrics for names in of_part)


def _parts(answer: SiteEvaluation) -> list[MomentsOfLabels]:
    return [*answer.models, *([answer.difference] if answer.difference else [])]
