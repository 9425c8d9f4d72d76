"""Where a site's trainer stands: after which round, with which tensors and random numbers."""

from __future__ import annotations

from pathlib import Path

import torch

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.errors import CheckpointError
from nnunetv2_federated.nnunet.training.randomness import (
    capture_randomness,
    restore_randomness,
)
from nnunetv2_federated.nnunet.training.ranks import gather, of_first, this_rank
from nnunetv2_federated.nnunet.training.site_state import (
    BEFORE_FIRST_ROUND,
    load_state,
    rounds_on_disk,
    save_state,
)
from nnunetv2_federated.nnunet.training.trainer import FederatedRounds
from nnunetv2_federated.nnunet.training.weights import (
    batchnorm_tensors,
    load_vector,
    local_buffers,
)


class TrainerState:
    """State of a trainer in memory, and on the site's disk between rounds.

    Parameters
    ----------
    trainer
        Trainer that is initialised, whose random numbers are drawn next.
    site
        Name of the site, for messages.
    folder
        Folder of the site in the run's folder.
    local_batchnorm
        Whether the site keeps its BatchNorm for itself.
    """

    def __init__(
        self, trainer: FederatedRounds, site: str, folder: Path, *, local_batchnorm: bool
    ) -> None:
        self._trainer = trainer
        self._site = site
        self._folder = folder
        self._local_batchnorm = local_batchnorm
        self._after_round = BEFORE_FIRST_ROUND
        self._started = False
        self._randomness = capture_randomness()

    def start(self) -> None:
        """Let the trainer start its training, once."""
        if not self._started:
            # other sites of this process may have drawn random numbers since this one was built
            restore_randomness(self._randomness)
            self._trainer.on_train_start()
            self._randomness = capture_randomness()
            self._started = True

    def return_to(self, server_round: int) -> None:
        """Put the trainer into the state it had before ``server_round``.

        A trainer that is in that state is kept, else the state is loaded from disk.

        Raises
        ------
        CheckpointError
            If the state is gone or cannot be read.
        """
        self.start()
        earlier = [r for r in rounds_on_disk(self._folder) if r < server_round]
        newest = of_first(max(earlier, default=None))
        if newest is None:
            if self._after_round != BEFORE_FIRST_ROUND:
                raise CheckpointError(f"site {self._site} lost its state in {self._folder}")
            self._save()  # the first round, too, may be asked for again
        elif newest != self._after_round:
            saved = load_state(self._folder, newest, self._trainer, self._local_tensors())
            if this_rank() < len(saved):  # else there were fewer GPUs: it goes on as it is
                self._randomness = saved[this_rank()]
            self._after_round = newest
        restore_randomness(self._randomness)

    def receive(self, weights: Vector) -> None:
        """Load the global weights.

        After its first round a site keeps its local tensors: integer buffers, and BatchNorm with
        ``--batchnorm local``.

        Parameters
        ----------
        weights
            Global weights, shape (parameters,).
        """
        first = self._after_round == BEFORE_FIRST_ROUND
        local = {} if first else self._local_tensors()
        load_vector(self._trainer.network, weights, keep=local.keys())

    def keep(self, server_round: int) -> None:
        """Save the state after a round that was trained."""
        self._randomness = capture_randomness()
        self._after_round = server_round
        self._save()

    def _local_tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors that the server never overwrites: counters, and BatchNorm if local."""
        network = self._trainer.network
        normalisation = batchnorm_tensors(network) if self._local_batchnorm else {}
        return local_buffers(network) | normalisation

    def _save(self) -> None:
        randomness = gather(self._randomness)
        if this_rank() == 0:
            save_state(
                self._folder, self._after_round, self._trainer, self._local_tensors(), randomness
            )
