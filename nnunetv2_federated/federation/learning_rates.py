"""The learning rate of every round, and each parameter group's share of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

_SAME = 1e-9
"""Relative difference of two rates that are the same but for rounding."""


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


@dataclass(frozen=True)
class Schedule:
    """Learning rates of a federation."""

    lrs: tuple[float, ...]
    """Learning rate of each round, as the server sends it."""
    shares: tuple[float, ...]
    """Factor of each parameter group; ``(1.0,)`` where there is one group."""

    def __post_init__(self) -> None:
        for server_round, lr in enumerate(self.lrs):
            if not (math.isfinite(lr) and 0 <= lr <= 1):
                raise ValueError(f"a learning rate of {lr:g} in round {server_round}, not 0 to 1")
        for share in self.shares:
            if not (math.isfinite(share) and share >= 0):
                raise ValueError(f"a parameter group with {share:g} times the learning rate")

    def with_poly(self, initial_lr: float) -> Schedule:
        """Return nnU-Net's default decay with the same shares."""
        rounds = len(self.lrs)
        return replace(self, lrs=tuple(poly_lr(r, rounds, initial_lr) for r in range(rounds)))

    def is_poly(self, initial_lr: float) -> bool:
        """Whether it is nnU-Net's default decay."""
        pairs = zip(self.lrs, self.with_poly(initial_lr).lrs, strict=True)
        return all(math.isclose(lr, poly, rel_tol=_SAME) for lr, poly in pairs)


def read_schedule(
    rates: Sequence[Sequence[float]], declared: Sequence[float], initial_lr: float
) -> Schedule:
    """Read a trainer's own schedule from the rates it gives its parameter groups.

    Groups keep their ratios. Where the optimizer declares different rates and the schedule gives
    all groups the same one, as nnU-Net's ``PolyLRScheduler`` does, the declared ratios are kept.

    Parameters
    ----------
    rates
        Learning rate of each group in each epoch.
    declared
        Learning rate of each group when the optimizer was built.
    initial_lr
        Initial learning rate of the trainer. A schedule that does not begin at its highest rate is
        taken to begin from this one.

    Returns
    -------
    Schedule
        Learning rates of the group that learns fastest, and the groups' shares of them.

    Raises
    ------
    ValueError
        If the groups do not keep their ratios from one epoch to the next.
    """
    lrs = tuple(max(epoch) for epoch in rates)
    peak = max(range(len(lrs)), key=lrs.__getitem__)
    flat = all(len(set(epoch)) == 1 for epoch in rates)
    if flat and len(set(declared)) > 1:
        start = lrs[0] if lrs[0] == lrs[peak] else initial_lr
        return Schedule(lrs, tuple(rate / start for rate in declared))
    if lrs[peak] == 0:
        return Schedule(lrs, (1.0,) * len(declared))
    shares = tuple(rate / lrs[peak] for rate in rates[peak])
    _check_ratios(rates, lrs, shares)
    return Schedule(lrs, shares)


def _check_ratios(
    rates: Sequence[Sequence[float]], lrs: Sequence[float], shares: Sequence[float]
) -> None:
    """Raise ``ValueError`` unless each group has the same share of the rate in every epoch."""
    for number, (epoch, lr) in enumerate(zip(rates, lrs, strict=True)):
        for rate, share in zip(epoch, shares, strict=True):
            if not math.isclose(rate, share * lr, rel_tol=_SAME, abs_tol=1e-15):
                raise ValueError(f"parameter groups whose ratios change in epoch {number}")
