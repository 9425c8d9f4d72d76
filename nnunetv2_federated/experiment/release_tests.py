"""Tests of a model on other cases, for its card: a comparison, or an evaluation by nnU-Net."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from nnunetv2_federated.experiment.comparison import COMPARISON_FILE, Comparison
from nnunetv2_federated.experiment.comparison_models import TESTS_FILE
from nnunetv2_federated.experiment.evaluation_files import EVALUATION, FORMAT
from nnunetv2_federated.experiment.release_results import (
    SUMMARY_FILE,
    read_summary,
    scores_of,
    without_remainder,
)
from nnunetv2_federated.federation.errors import FederationError, SettingsError
from nnunetv2_federated.federation.evaluation import FEWEST_CASES, SiteEvaluation
from nnunetv2_federated.federation.files import format_problem
from nnunetv2_federated.federation.model_card import Scores, TestResult
from nnunetv2_federated.federation.tested_case import TestedCase, read_tested_cases
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.nnunet.data.dataset import find_trainer
from nnunetv2_federated.nnunet.evaluation.tester import tester_of
from nnunetv2_federated.nnunet.training.optimizer import SUFFIX
from nnunetv2_federated.report.statistics import ALL_SITES, Key, Measure, in_group, table

Runs = dict[Key, Sequence[TestedCase]]
"""Tested cases of the runs of an arm."""


def read_results(folder: Path, trained: Collection[str] = ()) -> tuple[TestResult, ...]:
    """Read the tests of a comparison, or of an evaluation.

    Parameters
    ----------
    folder
        Folder of ``nnUNetv2_federated_compare`` or ``nnUNetv2_federated_evaluate``, or one with the
        ``summary.json`` of ``nnUNetv2_evaluate_folder``.
    trained
        Sites and datasets that the model was trained with; sites of other names are external in an
        evaluation.

    Raises
    ------
    SettingsError
        If the folder has neither, or one of its files cannot be read.
    """
    try:
        if (folder / COMPARISON_FILE).is_file():
            results = tuple(_of_comparison(folder))
        elif (folder / EVALUATION).is_file():
            results = tuple(_of_sites(folder, trained))
        elif (folder / SUMMARY_FILE).is_file():
            results = _of_evaluation(folder)
        else:
            raise SettingsError(f"it has no {COMPARISON_FILE}, {EVALUATION} or {SUMMARY_FILE}")
    except (FederationError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise SettingsError(
            f"--results {folder}: cannot be read ({clean(error, 200).rstrip('.')}); give the "
            "folder of a comparison that is tested, or of an evaluation."
        ) from error
    if not results:
        raise SettingsError(
            f"--results {folder}: has no test of at least {FEWEST_CASES} cases; leave it out."
        )
    return results


def _of_evaluation(folder: Path) -> tuple[TestResult, ...]:
    summary = read_summary(folder / SUMMARY_FILE)
    cases = len(summary.get("metric_per_case", []))
    scores = scores_of(cases, summary["foreground_mean"])
    name = clean(folder.resolve().name)
    return () if scores is None else (TestResult(name, "", name, None, scores),)


def _of_sites(folder: Path, trained: Collection[str]) -> Iterator[TestResult]:
    """Yield what each site answered of each model; a site has left out what is of too few."""
    content = json.loads((folder / EVALUATION).read_text("utf-8"))
    if content["format"] != FORMAT:
        problem = format_problem(int(content["format"]), FORMAT, "this installation")
        raise SettingsError(f"{EVALUATION} has {problem}")
    names = {field.name for field in fields(SiteEvaluation)}
    for site, told in content["sites"].items():
        own = {name: value for name, value in told.items() if name in names}
        answer = SiteEvaluation.from_json(json.dumps(own))
        for number, model in enumerate(content["models"]):
            scores = _of_answer(answer, number)
            if scores is not None:
                yield TestResult(
                    source=clean(folder.resolve().name),
                    model=clean(model["name"]),
                    group=clean(site),
                    external=site not in trained,
                    scores=scores,
                )


def _of_answer(answer: SiteEvaluation, number: int) -> Scores | None:
    if answer.scores:
        return scores_of(answer.cases, answer.scores[number] or {})
    told = {name: found for name, found in answer.models[number].foreground.items() if found}
    cases = min((found.cases for found in told.values()), default=0)
    return scores_of(cases, {name: found.mean for name, found in told.items()})


def _of_comparison(folder: Path) -> Iterator[TestResult]:
    comparison = Comparison.from_json((folder / COMPARISON_FILE).read_text("utf-8"))
    measure = tester_of(find_trainer(comparison.trainer.removesuffix(SUFFIX))).measure
    external = list(comparison.external)
    for arm, runs in _tests(comparison, folder).items():
        for group, scores in _scores_by_group(runs, external, measure).items():
            yield TestResult(
                source=clean(folder.resolve().name),
                model=arm,
                group=group,
                external=group in external,
                scores=scores,
                runs=len(runs),
            )


def _tests(comparison: Comparison, folder: Path) -> dict[str, Runs]:
    """Return the tested cases of each run, by arm."""
    tested: dict[str, Runs] = {}
    for model in comparison.models():
        path = folder / model.folder / TESTS_FILE
        if path.is_file():
            tested.setdefault(model.arm, {})[model.seed, model.fold] = read_tested_cases(path)
    return tested


def _scores_by_group(runs: Runs, external: Collection[str], measure: Measure) -> dict[str, Scores]:
    """Return the means of each site, of all that trained, and of each external site."""
    first = next(iter(runs.values()))
    sites = dict.fromkeys(case.site for case in first)
    of_groups = table(runs, [*sites, ALL_SITES], external, measure)
    found = {
        group: scores_of(
            len(in_group(first, group, external)),
            {name: spread.mean for name, spread in means.items()},
        )
        for group, means in of_groups.items()
    }
    shown = {group: scores for group, scores in found.items() if scores is not None}
    trained = {group: s for group, s in shown.items() if group not in (*external, ALL_SITES)}
    cases = len(in_group(first, ALL_SITES, external))
    hidden = trained.keys() - without_remainder(trained, cases).keys()
    return {group: scores for group, scores in shown.items() if group not in hidden}
