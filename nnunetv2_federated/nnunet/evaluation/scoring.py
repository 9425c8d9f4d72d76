"""Score a global model of a run on this machine: on the same batches, whatever trained it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.choice import names_of
from nnunetv2_federated.federation.messages import VALIDATION_EPOCH, Validation
from nnunetv2_federated.federation.objective import BLOCKS, Block, Score
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.privacy import PrivacyChoices
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.nnunet.environment import environment, quiet
from nnunetv2_federated.nnunet.training.randomness import seed_everything
from nnunetv2_federated.nnunet.training.site import Site


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
    scored = replace(run, settings=_without_privacy(run.settings))
    sites: list[list[Validation]] = []
    # worker processes would draw batches in another order each time
    with tempfile.TemporaryDirectory() as scratch, environment(nnUNet_n_proc_DA="0"):
        for index, cases in enumerate(run.sites):
            if not iterations[cases.name]:
                continue
            site = Site(scored, index, Path(scratch), Observer())
            try:
                seed = run.settings.seed + index
                sites.append(_score_site(site, weights, iterations[cases.name], seed))
            finally:
                site.close()
    blocks = zip_longest(*sites)
    return Score(tuple(Block.of([v for v in block if v is not None]) for block in blocks))


def _score_site(site: Site, weights: Vector, iterations: int, seed: int) -> list[Validation]:
    """Validate at one site; each part of the result is of a block of batches."""
    trainer = site.trainer
    with quiet():
        site.state.start()
        if iterations == VALIDATION_EPOCH:  # a classifier's follow from its loader, known by now
            iterations = trainer.num_val_iterations_per_epoch
        site.state.receive(weights)
        seed_everything(seed)
        return trainer.validate_blocks(iterations, BLOCKS)


def _without_privacy(settings: FederationSettings) -> FederationSettings:
    private = set(names_of(PrivacyChoices)) - {"dp_trainable"}
    given = {name: value for name, value in settings.given().items() if name not in private}
    return FederationSettings(**given)
