"""Write the report of a comparison from what its models left on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunetv2_federated.experiment.comparison import Comparison, Model
from nnunetv2_federated.experiment.comparison_examples import draw_examples
from nnunetv2_federated.experiment.comparison_folders import fold_folder
from nnunetv2_federated.experiment.comparison_models import (
    TESTS_FILE,
    read_model_history,
    read_state,
)
from nnunetv2_federated.experiment.comparison_plan import TEST_SET
from nnunetv2_federated.federation.privacy_attacks import (
    MEMBERSHIP_FILE,
    MembershipTest,
    read_attack,
)
from nnunetv2_federated.federation.tested_case import TestedCase, read_tested_cases
from nnunetv2_federated.nnunet.data.dataset import case_classes, find_trainer, load_dataset
from nnunetv2_federated.nnunet.data.site_cases import count_classes
from nnunetv2_federated.nnunet.evaluation.tester import (
    tester_of,
)
from nnunetv2_federated.nnunet.training.optimizer import SUFFIX
from nnunetv2_federated.report.comparison_data import ComparisonData, gather
from nnunetv2_federated.report.html import write_html
from nnunetv2_federated.report.markdown import write_markdown


def write_report(comparison: Comparison, folder: Path) -> Path:
    """Write ``report.html``, ``report.md`` and the PNGs; return the path of ``report.html``."""
    dataset = load_dataset(comparison.dataset, comparison.plans_name)
    tester = tester_of(find_trainer(comparison.trainer.removesuffix(SUFFIX)))
    models = comparison.models()
    records: dict[str, dict[tuple[int, int | str], list[TestedCase]]] = {}
    for model in models:
        path = folder / model.folder / TESTS_FILE
        if path.is_file():
            runs = records.setdefault(model.arm, {})
            runs[model.seed, model.fold] = read_tested_cases(path)
    sites = comparison.sites[comparison.seeds[0]]
    everyone = {**sites, **comparison.external}
    cases = sorted(case for own in everyone.values() for case in own)
    classes = case_classes(dataset, comparison.configuration, cases)
    data = gather(
        title=f"{comparison.dataset}, {comparison.configuration}",
        arms=[arm.name for arm in comparison.arms],
        runs=records,
        failures=_failures(models, folder),
        histories={
            (m.arm, m.seed, m.fold): found
            for m in models
            if (found := read_model_history(comparison, m, folder)) is not None
        },
        sites=list(sites),
        external=list(comparison.external),
        unknown_site=TEST_SET,
        counts=count_classes(everyone, classes),
        settings=_settings(comparison),
        measure=tester.measure,
        examples=draw_examples(comparison, dataset, records, folder),
        attacks={
            str(model): read_attack(path, MembershipTest)
            for model in models
            if (path := fold_folder(comparison, model, folder) / MEMBERSHIP_FILE).is_file()
        },
    )
    return write_pages(data, folder)


def write_pages(data: ComparisonData, folder: Path) -> Path:
    """Write all forms of the report; return the path of the HTML page."""
    write_markdown(data, folder)
    return write_html(data, folder / "report.html")


def _failures(models: list[Model], folder: Path) -> dict[str, str]:
    """Return the models without a test, and the reason of each."""
    found = {}
    for model in models:
        place = folder / model.folder
        if not (place / TESTS_FILE).is_file():
            found[str(model)] = read_state(place).get("reason") or "not finished"
    return found


def _settings(comparison: Comparison) -> dict[str, Any]:
    return {
        "dataset": comparison.dataset,
        "configuration": comparison.configuration,
        "plans": comparison.plans_name,
        "plans hash": comparison.plans_hash,
        "folds": comparison.folds,
        "seeds": comparison.seeds,
        "tested on": ("imagesTs" if comparison.test_set else "validation cases of the fold"),
        "external sites": list(comparison.external),
        **{arm.name: arm.options for arm in comparison.arms},
    }
