"""The learning rate of a round."""

from __future__ import annotations


def poly_lr(server_round: int, num_rounds: int, initial_lr: float, exponent: float = 0.9) -> float:
    """Polynomial decay, counted in rounds.

    ``initial_lr * (1 - server_round / num_rounds) ** exponent``: nnU-Net's ``PolyLRScheduler`` with
    rounds in place of epochs (Isensee et al. 2021; Chen et al. 2017, arXiv:1606.00915).

    Parameters
    ----------
    server_round
        Counted from 0.
    num_rounds
        Rounds of the whole federation.
    initial_lr
        Learning rate of round 0.
    exponent
        0.9 in nnU-Net.

    Raises
    ------
    ValueError
        If ``server_round`` is outside ``0 .. num_rounds - 1``.
    """
    if not 0 <= server_round < num_rounds:
        raise ValueError(f"round {server_round} is outside 0 .. {num_rounds - 1}")
    return float(initial_lr * (1 - server_round / num_rounds) ** exponent)
