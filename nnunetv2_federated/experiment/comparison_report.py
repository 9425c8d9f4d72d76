"""Gather what the models of a comparison left, and write its report."""

from __future__ import annotations

import json
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
from nnunetv2_federated.nnunet.data.dataset import Dataset, case_classes, find_trainer, load_dataset
from nnunetv2_federated.nnunet.data.site_cases import count_classes
from nnunetv2_federated.nnunet.evaluation.tester import (
    raw_folder,
    read_slice,
    test_images,
    tester_of,
    training_images,
)
from nnunetv2_federated.nnunet.training.server_lr import SUFFIX
from nnunetv2_federated.report.comparison_data import Evidence, Example, gather
from nnunetv2_federated.report.html import write_html
from nnunetv2_federated.report.markdown import write_markdown

_EXAMPLES = 6
_SHOWN_ARMS = 5


def write_report(comparison: Comparison, folder: Path) -> Path:
    """Write ``report.html``, ``report.md`` and the PNGs; return the first."""
    dataset = load_dataset(comparison.dataset, comparison.plans_name)
    tester = tester_of(find_trainer(comparison.trainer.removesuffix(SUFFIX)))
    models = comparison.models()
    records: dict[str, dict[tuple[int, int | str], list[dict[str, Any]]]] = {}
    for model in models:
        path = folder / model.folder / TESTS_FILE
        if path.is_file():
            runs = records.setdefault(model.arm, {})
            runs[model.seed, model.fold] = json.loads(path.read_text())
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
    records: Mapping[str, Mapping[tuple[int, int | str], list[dict[str, Any]]]],
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
    for record in chosen:
        case, subset = record["case"], record["subset"]
        images = training_images(raw) if subset == "Tr" else test_images(raw)
        truth = tester.references(raw, dataset.dataset_json, subset, [case])[case]
        found = {arm: next(r for r in shown[arm] if r["case"] == case) for arm in arms}
        files = []
        if "prediction" in record:
            places = {arm: folder / Model(arm, *key).folder / "predictions" for arm in arms}
            files = [str(truth), *(str(places[a] / found[a]["prediction"]) for a in arms)]
        image, masks = read_slice(dataset.plans, images[case], files)
        examples.append(
            Example(
                case,
                record["site"],
                str(record.get("truth", "")),
                image,
                masks[0] if masks else None,
                {
                    arm: (str(found[arm]["shown"]), masks[i + 1] if masks else None)
                    for i, arm in enumerate(arms)
                },
            )
        )
    return examples


def choose_examples(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Choose the median case of each site, and the worst of all."""
    scored = sorted(
        (r for r in records if r["score"] is not None), key=lambda r: (r["score"], r["case"])
    )
    by_site: dict[str, list[dict[str, Any]]] = {}
    for record in scored:
        by_site.setdefault(record["site"], []).append(record)
    medians = [own[len(own) // 2] for own in by_site.values()][: _EXAMPLES - 1]
    worst = [record for record in scored[:1] if record not in medians]
    return medians + worst
