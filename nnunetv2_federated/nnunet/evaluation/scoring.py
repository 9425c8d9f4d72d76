"""Score a global model of a run on this machine: on the same batches, whatever trained it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.choice import names_of
from nnunetv2_federated.federation.messages import BLOCKS, VALIDATION_EPOCH, SiteScore, Validation
from nnunetv2_federated.federation.objective import Score, blocks_for, score_of_sites
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.privacy import PrivacyChoices
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.nnunet.environment import environment, quiet
from nnunetv2_federated.nnunet.training.randomness import (
    capture_randomness,
    restore_randomness,
    seed_everything,
)
from nnunetv2_federated.nnunet.training.site import Site
from nnunetv2_federated.nnunet.training.site_pool import WorkingSite


def score(run: Run, weights: Vector, iterations: Mapping[str, int]) -> Score:
    """Validate weights on batches of every site's validation cases.

    The batches follow from seed, batch size and cases of the run, and from nothing else of it.
    Nothing is charged to the sites' patients: no gradient is computed.

    Parameters
    ----------
    run
        Run whose weights they are.
    weights
        Global weights.
    iterations
        Validation iterations at each site; 0 for none, ``VALIDATION_EPOCH`` for the trainer's own.
    """
    return score_of_sites(
        score_site(run, index, weights, iterations[cases.name])
        for index, cases in enumerate(run.sites)
        if iterations[cases.name]
    )


def score_site(
    run: Run,
    index: int,
    weights: Vector,
    iterations: int,
    *,
    blocks: Callable[[int], int] = lambda iterations: BLOCKS,  # noqa: ARG005
    observer: Observer | None = None,
) -> list[Validation]:
    """Validate weights at one site; each part of the result is of a block of batches.

    Parameters
    ----------
    run, weights
        As of :func:`score`.
    index
        Position of the site in ``run.sites``.
    iterations
        Validation iterations, ``VALIDATION_EPOCH`` for the trainer's own.
    blocks
        Returns the parts of the result at most, of so many iterations.
    observer
        Receives the progress.
    """
    scored = replace(run, settings=_without_privacy(run.settings), num_gpus=1)
    # worker processes would draw batches in another order each time
    with tempfile.TemporaryDirectory() as scratch, environment(nnUNet_n_proc_DA="0"):
        site = Site(scored, index, Path(scratch), observer or Observer())
        try:
            with quiet():
                site.state.start()
                if iterations == VALIDATION_EPOCH:  # a classifier's follow from its loader
                    iterations = site.trainer.num_val_iterations_per_epoch
                site.state.receive(weights)
                seed_everything(run.settings.seed + index)
                return site.trainer.validate_blocks(iterations, blocks(iterations))
        finally:
            site.close()


def score_here(site: WorkingSite, weights: Vector, iterations: int) -> SiteScore:
    """Score weights at a site that answers for itself alone.

    Parameters
    ----------
    site
        The site, whose own trainer stays as it is.
    weights, iterations
        As of :func:`score_site`.
    """
    cases = site.run.sites[0]
    blocks = partial(blocks_for, len(cases.validation_cases))
    before = capture_randomness()  # its next round goes on with these
    try:
        found = score_site(site.run, 0, weights, iterations, blocks=blocks, observer=site.observer)
    finally:
        restore_randomness(before)
    return SiteScore(cases.name, found)


def _without_privacy(settings: FederationSettings) -> FederationSettings:
    private = set(names_of(PrivacyChoices)) - {"dp_trainable"}
    given = {name: value for name, value in settings.given().items() if name not in private}
    return FederationSettings(**given)
