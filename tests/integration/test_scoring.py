"""A score follows from weights, seed and cases, and from nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from helpers import a_run

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.messages import VALIDATION_EPOCH
from nnunetv2_federated.federation.objective import BLOCKS, Block
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.nnunet.evaluation.scoring import score
from nnunetv2_federated.nnunet.training.global_model import GlobalModel


def first_weights(run: Run) -> Vector:
    return GlobalModel(run).vector


def test_trials_with_other_settings_are_scored_on_the_same_batches(
    dataset_2d: str, results: Path
) -> None:
    del results
    run = a_run(dataset_2d, sites=2, val_iterations=1)
    weights = first_weights(run)
    iterations = dict(zip(run.site_names, (12, 0), strict=True))
    found = score(run, weights, iterations)
    assert len(found.blocks) == BLOCKS
    assert found.noise > 0
    other = run.settings.changed(
        initial_lr=0.1, strategy="fedprox", local_epochs=3, val_iterations=2, dp_noise=1.0,
        dp_validation="clear",
    )  # fmt: skip
    assert score(replace(run, settings=other), weights, iterations) == found
    another = replace(run, settings=run.settings.changed(seed=7))
    assert score(another, weights, iterations) != found


def test_a_classifier_is_scored_on_every_validation_case(dataset_cls: str, results: Path) -> None:
    del results
    run = a_run(dataset_cls, trainer="nnUNetTrainerCls", configuration="2d_cls", sites=2)
    iterations = dict.fromkeys(run.site_names, VALIDATION_EPOCH)
    found = score(run, first_weights(run), iterations)
    cases = sum(len(site.validation_cases) for site in run.sites)
    assert sum(_cases(block) for block in found.blocks) == cases
    assert found == score(run, first_weights(run), iterations)


def _cases(block: Block) -> float:
    return sum(block.tp) + sum(block.fn)
