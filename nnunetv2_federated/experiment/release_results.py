"""How a model did, for its card: means over several cases of validations and tests."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_federated.experiment.comparison import COMPARISON_FILE, Comparison
from nnunetv2_federated.experiment.comparison_models import TESTS_FILE
from nnunetv2_federated.federation.errors import FederationError, SettingsError
from nnunetv2_federated.federation.model_card import FEWEST_CASES, Metrics, Scores, TestResult
from nnunetv2_federated.federation.run import RUN_FILE, SiteCases, read_run
from nnunetv2_federated.federation.tested_case import TestedCase, read_tested_cases
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.nnunet.data.dataset import find_trainer, read_json
from nnunetv2_federated.nnunet.evaluation.tester import tester_of
from nnunetv2_federated.nnunet.summary import join_summaries
from nnunetv2_federated.nnunet.training.optimizer import SUFFIX
from nnunetv2_federated.report.statistics import ALL_SITES, in_group, table

SUMMARY_FILE = "summary.json"
_VOXELS = ("FN", "FP", "TN", "TP", "n_pred", "n_ref")
"""What nnU-Net counts in a case, which says more of the cases than of the model."""


def case_of(row: Mapping[str, Any]) -> str:
    """Return the case of a row of ``metric_per_case``: of a segmentation its file without ending.

    Parameters
    ----------
    row
        Row of nnU-Net's ``summary.json``, or of a classifier's.
    """
    if "case" in row:
        return str(row["case"])
    name = Path(str(row.get("prediction_file") or row.get("reference_file") or "")).name
    return name.removesuffix(".gz").rpartition(".")[0]


def read_summary(path: Path) -> dict[str, Any]:
    """Read ``summary.json``; empty if there is none.

    Raises
    ------
    SettingsError
        If it is damaged, or of another form.
    """
    summary = read_json(path) if path.is_file() else {}
    rows = summary.get("metric_per_case", []) if isinstance(summary, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SettingsError(f"{path} is no summary of nnU-Net's: validate again.")
    return dict(summary)


def scores_of(cases: int, means: Mapping[str, Any]) -> Scores | None:
    """Return means over cases; ``None`` if they are too few for a mean."""
    metrics: Metrics = {
        str(name): float(value) if _is_number(value) else None
        for name, value in means.items()
        if name not in _VOXELS
    }
    return Scores(cases=cases, metrics=metrics) if cases >= FEWEST_CASES and metrics else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def validation_scores(fold: Path) -> Scores | None:
    """Return nnU-Net's full validation of a fold."""
    summary = read_summary(fold / "validation" / SUMMARY_FILE)
    return scores_of(_cases_of(summary), summary.get("foreground_mean", {}))


def site_scores(fold: Path) -> dict[str, Scores]:
    """Return the full validation of a fold at each site that has several validation cases.

    Of sites on other machines it is what they answered; of sites on this machine it is computed
    from the cases, which nnU-Net's summary of a segmentation has.
    """
    summary = read_summary(fold / "validation" / SUMMARY_FILE)
    found = {
        name: scores_of(int(site["cases"]), site["foreground_mean"])
        for name, site in summary.get("sites", {}).items()
    }
    rows = [row for row in summary.get("metric_per_case", []) if "metrics" in row]
    if rows and (fold / "federation" / RUN_FILE).is_file():
        sites = read_run(fold / "federation").sites
        several = len({site.dataset for site in sites}) > 1
        for site in sites:
            own = [row for row in rows if _is_of(row, site, several=several)]
            if own:
                joined = join_summaries([{"metric_per_case": own, "mean": summary["mean"]}])
                found[site.name] = scores_of(len(own), joined["foreground_mean"])
    shown = {name: scores for name, scores in found.items() if scores is not None}
    return without_remainder(shown, _cases_of(summary))


def _cases_of(summary: Mapping[str, Any]) -> int:
    """Return the number of cases that a summary is over."""
    rows = len(summary.get("metric_per_case", []))
    return rows or sum(int(site["cases"]) for site in summary.get("sites", {}).values())


def without_remainder(sites: Mapping[str, Scores], cases: int) -> dict[str, Scores]:
    """Leave out sites until those left out have several cases, or none is left out.

    The mean of all cases is known, too: what the sites that are shown leave of it must not be the
    score of a single case.

    Parameters
    ----------
    sites
        Means of the sites that have several cases.
    cases
        Number of cases of all sites together.
    """
    shown = dict(sites)
    while shown and 0 < cases - sum(scores.cases for scores in shown.values()) < FEWEST_CASES:
        del shown[min(shown, key=lambda name: shown[name].cases)]
    return shown


def _is_of(row: Mapping[str, Any], site: SiteCases, *, several: bool) -> bool:
    """Whether a row is of a site's case; datasets of several sites may have cases of one name."""
    there = site.dataset in Path(str(row.get("reference_file", ""))).parts
    return case_of(row) in site.validation_cases and (there or not several)


def read_results(folder: Path) -> tuple[TestResult, ...]:
    """Read the tests of a comparison, or of an evaluation by nnU-Net.

    Parameters
    ----------
    folder
        Folder of ``nnUNetv2_federated_compare``, or one with the ``summary.json`` of
        ``nnUNetv2_evaluate_folder``.

    Raises
    ------
    SettingsError
        If the folder has neither, or one of its files cannot be read.
    """
    try:
        if (folder / COMPARISON_FILE).is_file():
            results = tuple(_of_comparison(folder))
        elif (folder / SUMMARY_FILE).is_file():
            results = _of_evaluation(folder)
        else:
            raise SettingsError(f"it has no {COMPARISON_FILE} and no {SUMMARY_FILE}")
    except (FederationError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise SettingsError(
            f"--results {folder}: cannot be read ({clean(error, 200).rstrip('.')}); give the "
            "folder of a comparison that is tested, or of nnUNetv2_evaluate_folder."
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
    return () if scores is None else (TestResult(name, "", name, True, scores),)


def _of_comparison(folder: Path) -> Iterator[TestResult]:
    comparison = Comparison.from_json((folder / COMPARISON_FILE).read_text("utf-8"))
    measure = tester_of(find_trainer(comparison.trainer.removesuffix(SUFFIX))).measure
    tested: dict[str, dict[tuple[int, int | str], Sequence[TestedCase]]] = {}
    for model in comparison.models():
        path = folder / model.folder / TESTS_FILE
        if path.is_file():
            tested.setdefault(model.arm, {})[model.seed, model.fold] = read_tested_cases(path)
    external = list(comparison.external)
    for arm, runs in tested.items():
        first = next(iter(runs.values()))
        groups = [*dict.fromkeys(case.site for case in first if case.site not in external)]
        groups += [ALL_SITES, *(site for site in external if site in {c.site for c in first})]
        for group, means in table(runs, groups, external, measure).items():
            cases = len(in_group(first, group, external))
            scores = scores_of(cases, {name: spread.mean for name, spread in means.items()})
            if scores is not None:
                yield TestResult(
                    source=clean(folder.resolve().name),
                    model=arm,
                    group=group,
                    external=group in external,
                    scores=scores,
                    runs=len(runs),
                )
