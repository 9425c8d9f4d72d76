"""nnU-Net's rules for the best configuration, ensemble and postprocessing, on means over all sites.

As ``nnunetv2.evaluation.find_best_configuration`` and
``nnunetv2.postprocessing.remove_connected_components.determine_postprocessing`` have them; those
read the predictions of all cases, here a site answers for its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunetv2_federated.federation.messages import DICE

Labels = tuple[int, ...]
"""A label, or the labels of a region."""
Summary = Mapping[str, Any]
"""Means over all cases: ``foreground_mean`` by metric, ``mean`` by label and metric."""


@dataclass(frozen=True)
class Candidate:
    """Predictions to measure: of one configuration or of an ensemble of two, postprocessed."""

    configurations: tuple[str, ...]
    removals: tuple[Labels, ...] = ()
    """Of each of these unions of labels only the largest component is kept, one after another."""


@dataclass(frozen=True)
class Best:
    """What was chosen, and what it was chosen from."""

    results: Mapping[tuple[str, ...], Summary]
    """Of each configuration and ensemble, not postprocessed."""
    chosen: Candidate
    summary: Summary
    """Of what was chosen, postprocessed."""


def candidates(configurations: Sequence[str], *, ensembles: bool) -> list[tuple[str, ...]]:
    """Return all configurations, and then all pairs of them if ensembles are allowed."""
    singles = [(name,) for name in configurations]
    return [*singles, *(itertools.combinations(configurations, 2) if ensembles else ())]


def choose_best(
    configurations: Sequence[str],
    labels: Mapping[str, Labels],
    foreground: Labels,
    score: Callable[[Candidate], Summary],
    *,
    ensembles: bool,
) -> Best:
    """Choose as nnU-Net does.

    The highest mean Dice over the foreground wins; of equal ones the first, which is the simpler
    one. Of all foreground only the largest component is kept if that makes the mean better and no
    class worse; then, where there are several classes, of each class in turn if that makes its own
    Dice better.

    Parameters
    ----------
    configurations
        Names of the configurations, in the order in which they are looked at.
    labels
        Labels of each class or region, by its name in the summaries, in nnU-Net's order.
    foreground
        All foreground labels.
    score
        Returns means over all cases of a candidate.
    ensembles
        Whether ensembles of two configurations are candidates.
    """
    results = {
        names: score(Candidate(names)) for names in candidates(configurations, ensembles=ensembles)
    }
    best = max(results, key=lambda names: _mean(results[names]))  # the first of equal ones
    chosen, summary = Candidate(best), results[best]
    tried = _also_removing(chosen, foreground)
    after = score(tried)
    if _mean(after) > _mean(summary) and not any(
        _of(after, name) < _of(summary, name) for name in labels
    ):
        chosen, summary = tried, after
    if len(labels) > 1:
        for name, own in labels.items():
            tried = _also_removing(chosen, own)
            after = score(tried)
            if _of(after, name) > _of(summary, name):
                chosen, summary = tried, after
    return Best(results, chosen, summary)


def most_questions(configurations: int, labels: int, *, ensembles: bool) -> int:
    """Return how many candidates :func:`choose_best` measures at most."""
    singles = configurations
    pairs = configurations * (configurations - 1) // 2 if ensembles else 0
    return singles + pairs + 1 + (labels if labels > 1 else 0)


def _also_removing(candidate: Candidate, labels: Labels) -> Candidate:
    return Candidate(candidate.configurations, (*candidate.removals, labels))


def _mean(summary: Summary) -> float:
    return float(summary["foreground_mean"][DICE])


def _of(summary: Summary, name: str) -> float:
    return float(summary["mean"][name][DICE])
