"""Gather what the models of a comparison left, and write its report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_federated.experiment.comparison import Comparison, Model
from nnunetv2_federated.experiment.comparison_models import (
    TESTS_FILE,
    read_model_history,
    read_state,
)
from nnunetv2_federated.experiment.comparison_plan import TEST_SET
from nnunetv2_federated.federation.tested_case import TestedCase, read_tested_cases
from nnunetv2_federated.nnunet.data.dataset import Dataset, case_classes, find_trainer, load_dataset
from nnunetv2_federated.nnunet.data.site_cases import count_classes
from nnunetv2_federated.nnunet.evaluation.tester import (
    images_tr,
    images_ts,
    raw_folder,
    read_slice,
    tester_of,
)
from nnunetv2_federated.nnunet.training.server_lr import SUFFIX
from nnunetv2_federated.report.comparison_data import Evidence, Example, Image, gather
from nnunetv2_federated.report.html import write_html
from nnunetv2_federated.report.markdown import write_markdown

_EXAMPLES = 6
_SHOWN_ARMS = 5


def write_report(comparison: Comparison, folder: Path) -> Path:
    """Write ``report.html``, ``report.md`` and the PNGs; return the first."""
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
    evidence = gather(
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
        examples=_examples(comparison, dataset, records, folder),
    )
    return write_pages(evidence, folder)


def write_pages(evidence: Evidence, folder: Path) -> Path:
    """Write all forms of the report; return the page."""
    write_markdown(evidence, folder)
    return write_html(evidence, folder / "report.html")


def _failures(models: list[Model], folder: Path) -> dict[str, str]:
    """Models without a test, and why."""
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


def _examples(
    comparison: Comparison,
    dataset: Dataset,
    records: Mapping[str, Mapping[tuple[int, int | str], list[TestedCase]]],
    folder: Path,
) -> list[Example]:
    """Pictures of the median case of each site and of the worst of all, by the first federation."""
    key = (comparison.seeds[0], comparison.folds[0])
    shown = {arm: runs[key] for arm, runs in records.items() if key in runs}
    judges = [arm for arm in shown if arm.startswith("federated/")] or list(shown)
    if not judges:
        return []
    chosen = choose_examples(shown[judges[0]])
    rank = {"federated": 0, "centralised": 1, "local": 2}
    arms = sorted(shown, key=lambda arm: rank[arm.partition("/")[0]])[:_SHOWN_ARMS]
    raw = raw_folder(dataset)
    tester = tester_of(find_trainer(comparison.trainer.removesuffix(SUFFIX)))
    examples = []
    for tested in chosen:
        images = images_tr(raw) if tested.subset == "Tr" else images_ts(raw)
        truth = tester.references(raw, dataset.dataset_json, tested.subset, [tested.case])
        by_arm = {arm: next(t for t in shown[arm] if t.case == tested.case) for arm in arms}
        files = []
        if tested.prediction is not None:
            files = [str(truth[tested.case])]
            for arm, of_arm in by_arm.items():
                predictions = folder / Model(arm, *key).folder / "predictions"
                files.append(str(predictions / str(of_arm.prediction)))
        image, masks = read_slice(dataset.plans, images[tested.case], files)
        reference = masks[0] if masks else None
        segmentations: list[Image | None] = [*masks[1:]] or [None] * len(arms)
        examples.append(
            Example(
                tested.case,
                tested.site,
                tested.truth or "",
                image,
                reference,
                {
                    arm: (of_arm.shown, segmentation)
                    for (arm, of_arm), segmentation in zip(
                        by_arm.items(), segmentations, strict=True
                    )
                },
            )
        )
    return examples


def choose_examples(cases: list[TestedCase]) -> list[TestedCase]:
    """Choose the median case of each site, and the worst of all."""
    scored = [(case.score, case.case, case) for case in cases if case.score is not None]
    ranked = [case for *_, case in sorted(scored, key=lambda entry: entry[:2])]
    by_site: dict[str, list[TestedCase]] = {}
    for case in ranked:
        by_site.setdefault(case.site, []).append(case)
    medians = [of_site[len(of_site) // 2] for of_site in by_site.values()][: _EXAMPLES - 1]
    return medians + [case for case in ranked[:1] if case not in medians]
