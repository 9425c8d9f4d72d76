"""The learning rates that a trainer's own code would give its optimizer.

nnU-Net's trainers have schedulers of all kinds, and hooks that begin another stage at an epoch.
Both are run for every epoch without a batch, and the rates that they leave in the optimizer are
read. The trainer is then put back, so that nothing of this remains in it.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.learning_rates import Schedule, read_schedule
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.nnunet.training.optimizer import ABSENT, ServerRate
from nnunetv2_federated.nnunet.training.randomness import (
    capture_randomness,
    restore_randomness,
)


def declared_rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """Return the rates the groups were built with: torch's schedulers keep them."""
    return [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]


def schedule_of(trainer: ServerRate, rounds: int, choice: str) -> Schedule:
    """Return the schedule of a federation with this trainer; the trainer stays as it is.

    Parameters
    ----------
    trainer
        Trainer that is initialised.
    rounds
        Number of rounds of the federation, in place of the trainer's epochs.
    choice
        Value of ``--lr-schedule``: ``trainer`` for the trainer's own, ``poly`` for nnU-Net's.

    Raises
    ------
    SettingsError
        If the trainer's own schedule does not follow from the number of the round alone, or the
        trainer changes what it trains from one epoch to the next.
    """
    name = f"trainer {trainer.name_of_trainer}"
    try:
        with _to_put_back(trainer):
            rates, declared = _read(trainer, rounds)
        schedule = read_schedule(rates, declared, trainer.initial_lr)
    except SettingsError:
        raise
    except _Elsewhere as error:
        if choice == "trainer":
            raise SettingsError(
                f"{name} {error}: a federation cannot keep that; --lr-schedule poly takes "
                "nnU-Net's default decay in its place."
            ) from error
        groups = len(error.declared)
        rates, declared = [[trainer.initial_lr] * groups] * rounds, error.declared
        schedule = read_schedule(rates, declared, trainer.initial_lr)
    except ValueError as error:
        raise SettingsError(
            f"{name} has {clean(error)}: a federation has one schedule; write the trainer so that "
            "its groups keep their ratios."
        ) from error
    return schedule if choice == "trainer" else schedule.with_poly(trainer.initial_lr)


class _Elsewhere(Exception):  # noqa: N818  # never leaves this module
    """The rate does not follow from the number of the epoch alone."""

    def __init__(self, what: str, declared: list[float]) -> None:
        super().__init__(what)
        self.declared = declared


def _read(trainer: ServerRate, rounds: int) -> tuple[list[list[float]], list[float]]:
    """Return the rates of every epoch and group, and the rates the groups were built with."""
    trainer.optimizer, scheduler = trainer.own_optimizer()
    trainer.lr_scheduler = scheduler
    declared = declared_rates(trainer.optimizer)
    kind = type(scheduler).__name__
    if isinstance(scheduler, ReduceLROnPlateau):
        raise _Elsewhere(f"lowers its learning rate by what it validates ({kind})", declared)
    first, before = _other_settings(trainer), dict(vars(scheduler)) if scheduler else {}
    rates: list[list[float]] = []
    for epoch in range(max(rounds, 2)):  # a single epoch does not show whether anything changes
        rates.append(_start_epoch(trainer, epoch, declared))
        _require_same(trainer, first, epoch)
    untouched = bool(before) and all(before.get(k) is v for k, v in vars(scheduler).items())
    if untouched and all(epoch == rates[0] for epoch in rates):
        raise _Elsewhere(
            f"steps its scheduler ({kind}) elsewhere than at the start of an epoch", declared
        )
    return rates[:rounds], declared


def _start_epoch(trainer: ServerRate, epoch: int, declared: list[float]) -> list[float]:
    """Run the hooks at the start of an epoch; return the rates that they leave."""
    trainer.current_epoch = epoch
    try:
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        return [float(group["lr"]) for group in trainer.optimizer.param_groups]
    except Exception as error:
        raise _Elsewhere(
            f"has a learning rate that does not follow from the epoch alone "
            f"({type(error).__name__}: {clean(error, 100)})",
            declared,
        ) from error


def _other_settings(trainer: ServerRate) -> dict[str, Any]:
    """Return all that an optimizer does and a network learns, except for the learning rate."""
    ignored = ("params", "lr", "initial_lr")
    groups = trainer.optimizer.param_groups
    return {
        "optimizer": id(trainer.optimizer),
        "parameter groups": [[id(p) for p in group["params"]] for group in groups],
        "frozen weights": [p.requires_grad for p in trainer.network.parameters()],
        **{
            f"{key} of its optimizer": [group.get(key) for group in groups]
            for key in dict.fromkeys(k for group in groups for k in group if k not in ignored)
        },
    }


def _require_same(trainer: ServerRate, first: dict[str, Any], epoch: int) -> None:
    now = _other_settings(trainer)
    for what in {**first, **now}:
        if first.get(what, ABSENT) != now.get(what, ABSENT):
            raise SettingsError(
                f"trainer {trainer.name_of_trainer} changes the {what} in epoch {epoch}: a "
                "federation trains the same weights in the same way in every round; give a trainer "
                "with one stage."
            )


@contextlib.contextmanager
def _to_put_back(trainer: ServerRate) -> Iterator[None]:
    """Put a trainer into the state before its optimizer was built, and at the end into that of now.

    A trainer's hooks may change any attribute, count in lists and dictionaries, freeze weights,
    print, log and draw random numbers. All of that is undone at the end.
    """
    kept = dict(vars(trainer))
    randomness = capture_randomness()
    modes = [(module, module.training) for module in trainer.network.modules()]
    frozen = [(p, p.requires_grad) for p in trainer.network.parameters()]
    for name, value in trainer.before_optimizer.items():
        if value is ABSENT:
            delattr(trainer, name)
        else:
            setattr(trainer, name, value)
    for name, value in dict(vars(trainer)).items():
        if type(value) in (list, dict, set):  # a hook may change it in place
            setattr(trainer, name, copy.copy(value))
    trainer.log_file = os.devnull
    trainer.logger = copy.copy(trainer.logger)
    trainer.logger.loggers = []
    trainer.logger.local_logger = copy.deepcopy(trainer.logger.local_logger)
    for values in trainer.logger.local_logger.my_fantastic_logging.values():
        values.clear()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            # torch warns of schedulers that step although the optimizer never did
            warnings.simplefilter("ignore")
            yield
    finally:
        trainer.__dict__.clear()
        trainer.__dict__.update(kept)
        for module, mode in modes:
            module.training = mode
        for parameter, requires_grad in frozen:
            parameter.requires_grad_(requires_grad)
        restore_randomness(randomness)
