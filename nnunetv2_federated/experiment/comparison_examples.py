"""Examples for the report of a comparison: test cases, and what each arm predicted for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nnunetv2_federated.experiment.comparison import (
    CENTRALISED,
    ENSEMBLE,
    PERSONAL,
    Comparison,
    Model,
)
from nnunetv2_federated.federation.tested_case import TestedCase
from nnunetv2_federated.nnunet.data.dataset import Dataset, find_trainer
from nnunetv2_federated.nnunet.evaluation.tester import (
    images_tr,
    images_ts,
    raw_folder,
    read_slice,
    tester_of,
)
from nnunetv2_federated.nnunet.training.optimizer import SUFFIX
from nnunetv2_federated.report.comparison_data import Example, Image

_EXAMPLES = 6
_SHOWN_ARMS = 5
_ORDER = {"federated": 0, CENTRALISED: 1, PERSONAL: 2, "local": 3, ENSEMBLE: 4}
"""Place of each kind of arm in a row of pictures."""

Tested = Mapping[str, Mapping[tuple[int, int | str], list[TestedCase]]]
"""Tested cases by arm, then by seed and fold."""


def draw_examples(
    comparison: Comparison, dataset: Dataset, tested: Tested, folder: Path
) -> list[Example]:
    """Return pictures of the median case of each site and of the worst case of all.

    Parameters
    ----------
    comparison, dataset
        What was compared, and on which dataset.
    tested
        Tested cases; those of the first seed and fold are drawn. The first federated arm ranks
        them.
    folder
        Folder of the comparison.
    """
    key = (comparison.seeds[0], comparison.folds[0])
    of_first = {arm: runs[key] for arm, runs in tested.items() if key in runs}
    ranking = [arm for arm in of_first if arm.startswith("federated/")] or list(of_first)
    if not ranking:
        return []
    arms = sorted(of_first, key=lambda arm: _ORDER[arm.partition("/")[0]])[:_SHOWN_ARMS]
    predictions = {arm: folder / Model(arm, *key).folder / "predictions" for arm in arms}
    return [
        _draw(comparison, dataset, case, _of_case(of_first, arms, case), predictions)
        for case in choose_examples(of_first[ranking[0]])
    ]


def _of_case(
    tested: Mapping[str, list[TestedCase]], arms: Sequence[str], case: TestedCase
) -> dict[str, TestedCase]:
    """Return what each arm has of the same case."""
    return {arm: next(t for t in tested[arm] if t.case == case.case) for arm in arms}


def choose_examples(cases: list[TestedCase]) -> list[TestedCase]:
    """Choose the median case of each site, and the worst of all."""
    scored = [(case.score, case.case, case) for case in cases if case.score is not None]
    ranked = [case for *_, case in sorted(scored, key=lambda entry: entry[:2])]
    by_site: dict[str, list[TestedCase]] = {}
    for case in ranked:
        by_site.setdefault(case.site, []).append(case)
    medians = [of_site[len(of_site) // 2] for of_site in by_site.values()][: _EXAMPLES - 1]
    return medians + [case for case in ranked[:1] if case not in medians]


def _draw(
    comparison: Comparison,
    dataset: Dataset,
    case: TestedCase,
    by_arm: Mapping[str, TestedCase],
    predictions: Mapping[str, Path],
) -> Example:
    """Draw a slice of a case, its reference, and the prediction of each arm."""
    raw = raw_folder(dataset)
    images = images_tr(raw) if case.subset == "Tr" else images_ts(raw)
    files = list(_segmentations(comparison, dataset, case, by_arm, predictions))
    image, masks = read_slice(dataset.plans, images[case.case], files)
    drawn: list[Image | None] = [*masks] or [None] * (1 + len(by_arm))
    shown = zip(by_arm.items(), drawn[1:], strict=True)
    return Example(
        case.case,
        case.site,
        case.truth or "",
        image,
        drawn[0],
        {arm: (tested.shown, mask) for (arm, tested), mask in shown},
    )


def _segmentations(
    comparison: Comparison,
    dataset: Dataset,
    case: TestedCase,
    by_arm: Mapping[str, TestedCase],
    predictions: Mapping[str, Path],
) -> Iterator[str]:
    """Yield the files of the reference and of each arm's prediction; none of a classification."""
    if case.prediction is None:
        return
    raw = raw_folder(dataset)
    tester = tester_of(find_trainer(comparison.trainer.removesuffix(SUFFIX)))
    references = tester.references(raw, dataset.dataset_json, case.subset, [case.case])
    yield str(references[case.case])
    for arm, tested in by_arm.items():
        yield str(predictions[arm] / str(tested.prediction))
