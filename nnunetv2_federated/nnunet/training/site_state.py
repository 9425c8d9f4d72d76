"""A site's state on disk: what it keeps after each round, beside the weights that the server has.

``after_round_<n>.pt`` in the site's folder holds, after round ``n`` (-1: before the first round),
the optimizer with its momentum, the gradient scaler, the local tensors of the network, nnU-Net's
epoch counter and log, and the state of all random generators, of each rank that trains the site.

A site resumes for a round in these steps, in this order:

1. :class:`.site.Site` builds its trainer anew, seeded as for the first round.
2. :meth:`.site.Site.train` starts the trainer (``on_train_start``: data loaders and workers).
3. :func:`rounds_on_disk` lists the saved states. The newest one from before the round counts:
   newer ones are of rounds that the server did not finish, or forgot when it was restored.
4. :func:`load_state` puts optimizer, scaler, local tensors, epoch, log and random generators back.
5. The global weights of the round, which the server sends, are loaded; local tensors stay.
6. After the training :func:`save_state` writes the new state, and then deletes old ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nnunetv2_federated.nnunet.training.torch_file import load, plain, save
from nnunetv2_federated.nnunet.training.trainer import FederatedRounds

BEFORE_FIRST_ROUND = -1
"""Number of the round in the name of the state from before the first one."""
_STATE_FILE = re.compile(r"after_round_(-?\d+)\.pt")
_KEPT = 3
"""States that are kept. The newest may be of a round that the server must repeat, and the one
before of a round that a server restored from a backup asks for again."""


def rounds_on_disk(folder: Path) -> list[int]:
    """List the rounds after which a site saved its state, ascending."""
    matches = (_STATE_FILE.fullmatch(path.name) for path in folder.glob("after_round_*.pt"))
    return sorted(int(match.group(1)) for match in matches if match)


def state_path(folder: Path, server_round: int) -> Path:
    """Return the file of a site's state after a round."""
    return folder / f"after_round_{server_round}.pt"


def save_state(
    folder: Path,
    server_round: int,
    trainer: FederatedRounds,
    local_tensors: Mapping[str, torch.Tensor],
    randomness: Sequence[dict[str, Any]],
) -> None:
    """Save the state of a site after a round, atomically; then delete states that are too old.

    Parameters
    ----------
    folder
        Folder of the site.
    server_round
        Number of the round that has ended, or :data:`BEFORE_FIRST_ROUND`.
    trainer
        Trainer of the site.
    local_tensors
        Tensors of its network that the server never overwrites, by name.
    randomness
        State of the random generators of each rank, of :func:`.randomness.capture_randomness`.
    """
    best_ema = trainer._best_ema  # nnU-Net's own attribute
    state = {
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.grad_scaler.state_dict() if trainer.grad_scaler else None,
        "buffers": dict(local_tensors),
        "epoch": trainer.current_epoch,
        "best_ema": None if best_ema is None else float(best_ema),
        "logging": plain(trainer.logger.get_checkpoint()),
        "randomness": list(randomness),
    }
    save(state_path(folder, server_round), state)
    drop_superseded(folder)


def load_state(
    folder: Path,
    server_round: int,
    trainer: FederatedRounds,
    local_tensors: Mapping[str, torch.Tensor],
) -> list[dict[str, Any]]:
    """Put a trainer into the state that was saved after a round; return that of the generators.

    There is one for each rank that trained the round.

    Raises
    ------
    CheckpointError
        If the file is damaged, absent or of another format.
    """
    state = load(state_path(folder, server_round))
    trainer.optimizer.load_state_dict(state["optimizer"])
    if trainer.grad_scaler is not None and state["scaler"] is not None:
        trainer.grad_scaler.load_state_dict(state["scaler"])
    with torch.no_grad():
        for name, tensor in local_tensors.items():
            tensor.copy_(state["buffers"][name])
    trainer.current_epoch = state["epoch"]
    trainer._best_ema = state["best_ema"]  # nnU-Net's own attribute
    trainer.logger.load_checkpoint(state["logging"])
    randomness: list[dict[str, Any]] = state["randomness"]
    return randomness


def kept_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return the local tensors that a site had after its last round, by name.

    None of a site that took part in no round: it has only what the server sent.

    Raises
    ------
    CheckpointError
        If the file is damaged or of another format.
    """
    rounds = [r for r in rounds_on_disk(folder) if r != BEFORE_FIRST_ROUND]
    if not rounds:
        return {}
    tensors: dict[str, torch.Tensor] = load(state_path(folder, rounds[-1]))["buffers"]
    return tensors


def drop_superseded(folder: Path) -> None:
    """Delete all but the three newest states of a site."""
    for server_round in rounds_on_disk(folder)[:-_KEPT]:
        state_path(folder, server_round).unlink()
