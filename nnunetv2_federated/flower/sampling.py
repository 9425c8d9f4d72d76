"""Which sites train in a round, and which share of the validation each takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from nnunetv2_federated.federation.messages import VALIDATION_EPOCH


def sample_sites(names: list[str], count: int | None, seed: int, server_round: int) -> list[str]:
    """Choose the sites of a round; the same for the same seed and round, on any machine.

    Parameters
    ----------
    names
        Names of all sites, in any order.
    count
        Number of sites to draw, without replacement; ``None`` for all.
    seed, server_round
        Seed of the run and number of the round. Each round draws from a generator of its own, so
        there is no sampler state to save.

    Returns
    -------
    list of str
        Names of the chosen sites, sorted.
    """
    ordered = sorted(names)
    if count is None or count >= len(ordered):
        return ordered
    generator = np.random.Generator(np.random.PCG64([seed, server_round]))
    return sorted(ordered[i] for i in generator.permutation(len(ordered))[:count])


def validation_share(iterations: int | None, cases: Mapping[str, int]) -> dict[str, int]:
    """Spread one epoch of validation iterations over sites by their validation cases.

    Parameters
    ----------
    iterations
        Validation iterations of one epoch; ``None`` for trainers that go through all their cases,
        of which each site then does its own epoch.
    cases
        Number of validation cases of each site.

    Returns
    -------
    dict
        Iterations of each site: rounded up, and 0 for a site without validation cases.
    """
    if iterations is None:
        return {site: VALIDATION_EPOCH if n else 0 for site, n in cases.items()}
    total = sum(cases.values())
    return {site: -(-iterations * n // total) if n else 0 for site, n in cases.items()}


class SampledGrid(Grid):
    """A Grid that only names nodes: an inner Flower strategy configures a round for these.

    Flower's strategies ask a Grid who is connected. Nothing is sent through this one.

    Parameters
    ----------
    node_ids
        Nodes of the sites that train in the round.
    """

    def __init__(self, node_ids: list[int]) -> None:
        self._node_ids = node_ids

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes of the round's sites."""
        return self._node_ids

    def set_run(self, run: object) -> None:
        """Refuse: this Grid has no run."""
        raise NotImplementedError

    @property
    def run(self) -> object:  # type: ignore[override]
        """Refuse: this Grid has no run."""
        raise NotImplementedError

    def create_message(self, *args: object, **kwargs: object) -> Message:
        """Refuse: this Grid sends nothing."""
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Refuse: this Grid sends nothing."""
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Refuse: this Grid sends nothing."""
        raise NotImplementedError

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Refuse: this Grid sends nothing."""
        raise NotImplementedError
