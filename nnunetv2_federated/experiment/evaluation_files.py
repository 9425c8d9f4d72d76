"""The files that an evaluation leaves: all of them, or none."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.evaluation import (
    EvaluationOffer,
    EvaluationProposal,
    SiteEvaluation,
)
from nnunetv2_federated.federation.files import write_atomically
from nnunetv2_federated.federation.pooled_evaluation import (
    PooledLabels,
    mean_of_scores,
    pool_labels,
    summary_of,
)
from nnunetv2_federated.report.evaluation import write_pages
from nnunetv2_federated.report.evaluation_rows import EvaluationReport, ReportedModel

FORMAT = 1
"""Number of the format of ``evaluation.json``."""
EVALUATION = "evaluation.json"
_FILES = ("summary.json", "summary_2.json", EVALUATION, "report.md", "report.html")


@dataclass(frozen=True)
class Written:
    """Files of an evaluation."""

    summary: dict[str, Any]
    """Content of ``summary.json``."""
    report: Path


def check_new(folder: Path) -> None:
    """Refuse a folder that has an evaluation already, or cannot be written.

    Raises
    ------
    SettingsError
        If it is so.
    """
    for name in _FILES:
        if (folder / name).exists():
            raise SettingsError(f"-o {folder}: has a {name} already; give a new folder.")
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise SettingsError(f"-o {folder} cannot be written: give a folder you may write to.")


def write_evaluation(
    folder: Path,
    proposal: EvaluationProposal,
    names: Sequence[str],
    offers: Sequence[EvaluationOffer],
    answers: Sequence[SiteEvaluation],
) -> Written:
    """Write ``summary.json``, ``evaluation.json``, ``report.md`` and ``report.html``.

    Parameters
    ----------
    folder
        Folder of the files.
    proposal
        What the sites were asked.
    names
        Name of each model.
    offers, answers
        Of each site.
    """
    found = _found(proposal, answers)
    summaries = [summary_of(model) for model in found.pooled] or list(map(_of_scores, found.scores))
    reported = [
        ReportedModel(name, model.trainer, model.configuration, list(model.folds), model.sha256)
        for name, model in zip(names, proposal.models, strict=True)
    ]
    content = _content(proposal, reported, offers, answers)
    content |= {
        "all_sites": [asdict(model) for model in found.pooled],
        "difference": found.difference and asdict(found.difference),
        "mean_over_sites_weighted_by_cases": found.scores,
    }
    report = EvaluationReport(
        models=reported,
        labels=_label_names(proposal),
        pooled=found.pooled,
        difference=found.difference,
        scores=found.scores,
        sites=list(answers),
        settings=content["settings"],
    )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, summary in zip(_FILES, summaries, strict=False):
            write_atomically(folder / name, _json(summary))
        write_atomically(folder / EVALUATION, _json(content))
        return Written(summaries[0], write_pages(report, folder))
    except BaseException:  # a full disk, Ctrl-C: leave none, as there was none before
        for name in _FILES:
            (folder / name).unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class _Found:
    """What follows for all sites together."""

    pooled: list[PooledLabels]
    difference: PooledLabels | None
    scores: list[dict[str, float | None]]


def _found(proposal: EvaluationProposal, answers: Sequence[SiteEvaluation]) -> _Found:
    numbers = range(len(proposal.models))
    if proposal.models[0].classifies:
        return _Found([], None, [mean_of_scores(answers, number) for number in numbers])
    told = [answer.difference for answer in answers if answer.difference is not None]
    pooled = [pool_labels([answer.models[number] for answer in answers]) for number in numbers]
    return _Found(pooled, pool_labels(told) if told else None, [])


def _content(
    proposal: EvaluationProposal,
    models: Sequence[ReportedModel],
    offers: Sequence[EvaluationOffer],
    answers: Sequence[SiteEvaluation],
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "approval": proposal.approval(),
        "models": [asdict(model) for model in models],
        "settings": {
            "cases": "imagesTs" if proposal.subset == "Ts" else "imagesTr",
            "metrics": proposal.metrics,
            "min_cases": proposal.min_cases,
            "quantiles": proposal.quantiles,
            "packages": proposal.packages,
        },
        "sites": {
            answer.site: {**asdict(answer), "versions": offer.versions, "device": offer.device}
            for offer, answer in zip(offers, answers, strict=True)
        },
    }


def _of_scores(scores: dict[str, float | None]) -> dict[str, Any]:
    return {"foreground_mean": scores, "mean": {}, "metric_per_case": []}


def _label_names(proposal: EvaluationProposal) -> dict[str, str]:
    """Return the name of each label or region, by nnU-Net's spelling of its number."""
    named = proposal.models[0].dataset_json["labels"]
    return {
        str(tuple(value) if isinstance(value, list) else value): str(name)
        for name, value in named.items()
    }


def _json(content: object) -> str:
    return json.dumps(content, indent=2) + "\n"
