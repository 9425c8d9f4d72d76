"""Federated trainers: any nnU-Net trainer, whose epochs are run a round at a time."""

from __future__ import annotations

import contextlib
import inspect
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_federated.federation.disk import naming_the_disk
from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.learning_rates import Schedule
from nnunetv2_federated.federation.messages import Validation
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.nnunet.data.dataset import compared_labels, find_trainer
from nnunetv2_federated.nnunet.privacy.trainable import train_only
from nnunetv2_federated.nnunet.training.checkpoint_file import save_as_stock
from nnunetv2_federated.nnunet.training.optimizer import SUFFIX, ServerRate
from nnunetv2_federated.nnunet.training.proximal_loss import ProximalLoss
from nnunetv2_federated.nnunet.training.ranks import (
    gather,
    num_ranks,
    of_first,
    over_ranks,
)
from nnunetv2_federated.nnunet.training.shared_memory import (
    batch_bytes,
    check_shared_memory,
    naming_shared_memory,
)
from nnunetv2_federated.nnunet.training.steps import Steps, UntilDeadline
from nnunetv2_federated.nnunet.training.tracking import untracked
from nnunetv2_federated.nnunet.training.trainer_schedule import schedule_of

_LOOKS_FOR_TRAINERS = "find_objects.py"
"""File of nnU-Net that raises where there is no trainer of a name."""
_ARGUMENTS = ("plans", "configuration", "fold", "dataset_json", "device")
"""Arguments with which nnU-Net builds a trainer."""


def _no_benchmark(loader: object) -> None:
    """Keep blur from timing itself to choose an algorithm: such a choice cannot be repeated."""
    if not isinstance(loader, SingleThreadedAugmenter):
        return
    pending = [loader.data_loader.transforms]
    while pending:
        transform = pending.pop()
        if isinstance(transform, GaussianBlurTransform):
            transform.benchmark = False
        pending += getattr(transform, "transforms", None) or []
        if getattr(transform, "transform", None) is not None:
            pending.append(transform.transform)


class FederatedRounds(ServerRate):
    """Mixin for any ``nnUNetTrainer`` subclass: nnU-Net's own epochs, a round at a time.

    nnU-Net's ``run_training`` and every hook it calls run unchanged. What differs: the learning
    rate comes from the server, the cases may be a site's, and ``on_train_start`` and
    ``on_train_end`` run once for all rounds, not once for each.
    """

    site_cases: tuple[list[str], list[str]] | None = None
    """Training and validation cases of a site; ``None`` for nnU-Net's own split."""
    lr_schedule_of_run = "trainer"
    """Value of ``--lr-schedule``: ``trainer`` or ``poly``."""
    trainable_of_run = "all"
    """Value of ``--dp-trainable``."""
    epochs_of_trainer: int
    """Number of epochs that the trainer has in nnU-Net; a federation has rounds instead."""
    schedule: Schedule
    """Learning rate of each round; known once the trainer is initialised."""
    on_iteration: Callable[[], None] | None = None
    """Called after every training and validation iteration."""
    rate_of_step: Callable[[int], float] | None = None
    """Learning rate of each training iteration of a round, counted from 0, in place of one for all
    of them."""
    _in_round = False
    """Whether ``run_training`` is running, whose end is not that of the training."""
    _steps = Steps()

    last_validation = Validation(0, 0.0, [], [], [])
    """Sums over the validation iterations of the last epoch."""

    @property
    def completed(self) -> float:
        """Share of the last round's training iterations that were done."""
        return self._steps.completed

    @property
    def validated_classes(self) -> int | None:
        """Number of classes that :attr:`last_validation` counts; ``None`` if it is not known.

        A trainer with a ``validation_step`` of its own may have an attribute of this name.
        """
        given: int | None = getattr(super(), "validated_classes", None)
        if (
            given is not None
            or super().validation_step.__func__ is not nnUNetTrainer.validation_step
        ):
            return given
        return len(compared_labels(self.label_manager))

    def run_round(
        self,
        lr: float,
        epochs: int = 1,
        proximal_mu: float = 0.0,
        seconds: float | None = None,
    ) -> float:
        """Train ``epochs`` epochs of nnU-Net at a fixed learning rate.

        Parameters
        ----------
        lr
            Learning rate of the round, from the server.
        epochs
            Local epochs, each with nnU-Net's training and validation iterations.
        proximal_mu
            Weight of FedProx's proximal term, relative to the weights at entry; 0 for none.
        seconds
            Stop training after so many seconds, but not before one iteration is done. The share of
            the iterations that were done is in :attr:`completed`. ``None`` for no limit.

        Returns
        -------
        float
            Mean training loss over the epochs. Validation counts are in :attr:`last_validation`.

        Raises
        ------
        SiteError
            If the trainer ends before its epochs do, or changes its learning rate within one.
        """
        self.on_train_start()
        self._rate.lr = lr
        self.num_epochs = last = self.current_epoch + epochs
        self._in_round = True
        self._steps = Steps(seconds, of_first)
        loader = self.dataloader_train
        if seconds is not None:
            self.dataloader_train = UntilDeadline(loader, self._steps)
        try:
            with self.proximal_term(proximal_mu):
                super().run_training()
        finally:
            self._in_round = False
            self.dataloader_train = loader
        if self.current_epoch != last or self._steps.done < epochs:
            raise SiteError(
                f"trainer {self.name_of_trainer} ended {last - self.current_epoch} of {epochs} "
                "epochs too early: its run_training is no loop over epochs, or an error ended it "
                "(see its log file)"
            )
        losses = self.logger.get_value("train_losses", step=None)[-epochs:]
        return float(np.mean(losses))

    @contextlib.contextmanager
    def proximal_term(self, mu: float) -> Iterator[None]:
        """Add FedProx's term to the loss, within, if its weight is above 0."""
        plain_loss = self.loss
        if mu > 0:
            self.loss = ProximalLoss(plain_loss, self.network, mu)
        try:
            yield
        finally:
            self.loss = plain_loss

    def validate_iterations(self, iterations: int) -> Validation:
        """Validate the present weights on patches; nothing of it enters nnU-Net's log."""
        return self.validate_blocks(iterations, 1)[0]

    @torch.no_grad()
    def validate_blocks(self, iterations: int, blocks: int) -> list[Validation]:
        """Do what :meth:`validate_iterations` does, and add up each of some blocks by itself.

        Parameters
        ----------
        iterations
            Validation iterations of all blocks together.
        blocks
            Number of blocks at most; iterations are dealt to them in turn.
        """
        self.on_validation_epoch_start()
        outputs = [self.validation_step(next(self.dataloader_val)) for _ in range(iterations)]
        count = min(blocks, iterations)
        return [_sum_validation(outputs[i::count], self.name_of_trainer) for i in range(count)]

    def close(self) -> None:
        """Stop the augmentation workers."""
        if self._started:
            self.on_train_end()
            self._started = False

    # methods of nnUNetTrainer that differ in a federation

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  # nnU-Net's signature
    ) -> None:
        with untracked():  # a federation is one run of a tracker, which GlobalModel starts
            super().__init__(
                plans=plans,
                configuration=configuration,
                fold=fold,
                dataset_json=dataset_json,
                device=device,
            )
        self.epochs_of_trainer = self.num_epochs

    def initialize(self) -> None:  # noqa: D102
        super().initialize()
        train_only(self.network, self.trainable_of_run)
        self.take_schedule()

    def take_schedule(self) -> None:
        """Read the trainer's schedule for as many rounds as ``num_epochs`` says now."""
        self.schedule = schedule_of(self, self.num_epochs, self.lr_schedule_of_run)
        self._rate.shares = self.schedule.shares

    def do_split(self) -> tuple[list[str], list[str]]:  # noqa: D102
        return self.site_cases if self.site_cases is not None else super().do_split()

    def get_dataloaders(self) -> tuple[Any, Any]:  # noqa: D102
        check_workers(self, num_ranks())
        loaders: tuple[Any, Any] = super().get_dataloaders()
        for loader in loaders:
            _no_benchmark(loader)
        return loaders

    def on_train_start(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401, D102
        if not self._started:
            super().on_train_start(*args, **kwargs)
            self._started = True

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401, D102
        if not self._in_round:
            super().on_train_end(*args, **kwargs)

    def on_validation_epoch_end(  # noqa: D102
        self,
        val_outputs: list[dict[str, Any]],
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        self.last_validation = _sum_validation(val_outputs, self.name_of_trainer)
        super().on_validation_epoch_end(val_outputs, *args, **kwargs)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:  # noqa: D102
        # worker processes write the predictions, and their errors may not name the cause; shared
        # memory is looked at first, since a full one is not a full disk
        with naming_the_disk(Path(self.output_folder)), naming_shared_memory():
            super().perform_actual_validation(save_probabilities)

    def train_step(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401, D102
        if self._steps.over():
            return self._counted(self._steps.skip())
        if self.rate_of_step is not None:
            self._rate.lr = self.rate_of_step(self._steps.done)
            self._rate.step()
        outputs = self._steps.take(super().train_step(*args, **kwargs))
        if not self._rate.is_kept:
            raise SiteError(
                f"trainer {self.name_of_trainer} changes its learning rate within an epoch: a "
                "federation has one rate a round; give a trainer whose rate follows the epoch"
            )
        return self._counted(outputs)

    def validation_step(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401, D102
        return self._counted(super().validation_step(*args, **kwargs))

    def _counted(self, outputs: dict[str, Any]) -> dict[str, Any]:
        if self.on_iteration is not None:
            self.on_iteration()
        return outputs

    def save_checkpoint(self, filename: str) -> None:
        """Save like nnU-Net, atomically and under the name of the nearest stock trainer."""
        if self.disable_checkpointing:
            super().save_checkpoint(filename)
        else:
            save_as_stock(super().save_checkpoint, filename, stock_name(type(self)))


def check_workers(trainer: FederatedRounds, trainers: int = 1) -> None:
    """Raise ``SettingsError`` if shared memory is too small for a trainer's augmentation workers.

    Parameters
    ----------
    trainer
        Trainer that is initialised.
    trainers
        Number of such trainers that exist at the same time.
    """
    batch = batch_bytes(
        trainer.batch_size,
        trainer.configuration_manager.patch_size,
        trainer.num_input_channels,
        trainer.label_manager,
    )
    check_shared_memory(batch, pinned=trainer.device.type == "cuda", trainers=trainers)


def _sum_validation(outputs: list[dict[str, Any]], trainer: str) -> Validation:
    """Sum what ``validation_step`` returned over iterations, and over the ranks of a group."""
    needed = ("loss", "tp_hard", "fp_hard", "fn_hard")
    missing = [key for key in needed if any(key not in output for output in outputs)]
    if missing:
        raise SiteError(
            f"validation_step of trainer {trainer} returns no {missing[0]}: a federation sums what "
            f"nnU-Net's returns ({', '.join(needed)})"
        )
    tp, fp, fn = (
        np.sum([output[key] for output in outputs], axis=0).astype(float).tolist()
        for key in needed[1:]
    )
    loss = float(np.sum([output["loss"] for output in outputs]))
    return over_ranks(gather(Validation.of(len(outputs), loss, tp, fp, fn)))


class nnUNetTrainerFederated(FederatedRounds, nnUNetTrainer):  # noqa: N801  # nnU-Net's spelling
    """``nnUNetTrainer``, federated."""


def federate(trainer: type) -> type[FederatedRounds]:
    """Return the federated sibling of any trainer, the class ``<Name>Federated``.

    Raises
    ------
    SettingsError
        If the trainer is an abstract base class, or its constructor is not nnU-Net's.
    """
    if issubclass(trainer, FederatedRounds):
        return trainer
    if trainer is nnUNetTrainer:
        return nnUNetTrainerFederated
    build: Any = getattr(trainer, "build_network_architecture", None)
    if getattr(build, "__isabstractmethod__", False):
        raise SettingsError(
            f"trainer {trainer.__name__} has no network of its own: it is what others are made "
            "from; give one of them."
        )
    try:
        inspect.signature(trainer).bind(**dict.fromkeys(_ARGUMENTS))
    except TypeError as error:
        raise SettingsError(
            f"trainer {trainer.__name__}: its __init__ cannot be called as nnU-Net calls it "
            f"({error}): it must take {', '.join(_ARGUMENTS)}, and need no more."
        ) from error
    return type(trainer.__name__ + SUFFIX, (FederatedRounds, trainer), {})


def federated_trainer(name: str) -> type[FederatedRounds]:
    """Return the federated trainer of a name.

    Parameters
    ----------
    name
        ``nnUNetTrainer``, any other trainer that nnU-Net finds, or either with ``Federated``.

    Raises
    ------
    SettingsError
        If there is no such trainer, or it cannot be federated.
    """
    if name == nnUNetTrainerFederated.__name__:
        return nnUNetTrainerFederated
    try:
        trainer = _find(name)
    except SettingsError:
        if not name.endswith(SUFFIX):
            raise
        trainer = _find(name.removesuffix(SUFFIX))
    return federate(trainer)


def _find(name: str) -> type:
    try:
        return find_trainer(name)
    except Exception as error:  # nnU-Net's search runs every file on its way
        cause = error.__cause__ or error
        file = _failed_file(cause)
        if isinstance(error, SettingsError) and Path(file).name == _LOOKS_FOR_TRAINERS:
            raise
        raise SettingsError(
            f"trainer {clean(name, 80)} cannot be looked for: {file} cannot be imported "
            f"({type(cause).__name__}: {clean(cause, 200)}); install what is missing, fix the "
            "file, or take it out of nnUNet_extTrainer."
        ) from error


def _failed_file(error: BaseException) -> str:
    """Return the file in which an error was raised."""
    if isinstance(error, SyntaxError) and error.filename:
        return error.filename
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return next(file for file in reversed(files) if not file.startswith("<frozen"))


def stock_name(trainer: type) -> str:
    """Return the name of the nearest trainer that inference can use without this package.

    It is the first ancestor of nnU-Net's own that builds the same architecture; for an external
    trainer with an architecture of its own, that trainer.
    """
    ancestors = [c for c in trainer.__mro__ if not issubclass(c, ServerRate) and c is not object]
    builds = [
        c
        for c in ancestors
        if getattr(c, "build_network_architecture", None) is trainer.build_network_architecture  # type: ignore[attr-defined]
    ]
    stock = [c for c in builds if c.__module__.startswith("nnunetv2.")]
    return (stock or builds or ancestors)[0].__name__
