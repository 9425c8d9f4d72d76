"""The server's state on disk, from which a killed federation resumes.

The server resumes in these steps, in this order:

1. :class:`.GlobalModel` is built anew from ``run.json``.
2. :func:`load_server_state` reads ``federation/state.pt``: global weights, rounds, state of the
   strategy, and nnU-Net's epoch and log.
3. The state of the strategy is restored; then the sites are asked to join again.
4. The round after the last one that was saved begins. Sites that had begun it already return to
   their own state before it (:mod:`.site_state`).
5. At the end of the round :func:`save_server_state` replaces the state.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.errors import CheckpointError
from nnunetv2_federated.federation.history import RoundRecord
from nnunetv2_federated.nnunet.training import torch_file
from nnunetv2_federated.nnunet.training.trainer import FederatedRounds
from nnunetv2_federated.nnunet.training.weights import network_hash


@dataclass(frozen=True)
class ServerState:
    """What a server keeps between rounds, beside nnU-Net's epoch and log."""

    weights: Vector
    """Global weights after the last round."""
    rounds: list[RoundRecord]
    """Records of all finished rounds."""
    strategy: dict[str, Any]
    """State of the strategy, of :func:`.strategy_state.dump`."""


def save_server_state(path: Path, state: ServerState, trainer: FederatedRounds) -> None:
    """Save everything that a resumed run needs, atomically.

    Parameters
    ----------
    path
        File of the state; replaced.
    state
        State after a round.
    trainer
        Trainer of the global model, whose epoch and log are saved as well.
    """
    content = {
        "network_hash": network_hash(trainer.network),
        "weights": torch.tensor(state.weights),
        "rounds": [record.to_plain() for record in state.rounds],
        "strategy": state.strategy,
        "epoch": trainer.current_epoch,
        "best_ema": trainer._best_ema,  # nnU-Net's own attribute
        "logging": trainer.logger.get_checkpoint(),
    }
    torch_file.save(path, content)


def load_server_state(path: Path, trainer: FederatedRounds) -> ServerState | None:
    """Load the state of an earlier run, with epoch and log into the trainer.

    Parameters
    ----------
    path
        File of the state.
    trainer
        Trainer of the global model.

    Returns
    -------
    ServerState or None
        ``None`` if there is no file: the earlier run has finished no round.

    Raises
    ------
    CheckpointError
        If the state is damaged, of another format, or of another network.
    """
    if not path.is_file():
        return None
    content = torch_file.load(path)
    if content.get("network_hash") != network_hash(trainer.network):
        raise CheckpointError(
            f"{path} holds the weights of another network: the plans or the trainer changed; "
            "start anew without --c."
        )
    trainer.current_epoch = content["epoch"]
    trainer._best_ema = content["best_ema"]
    trainer.logger.load_checkpoint(content["logging"])
    return ServerState(
        content["weights"].numpy(),
        [RoundRecord.from_plain(record) for record in content["rounds"]],
        content["strategy"],
    )
