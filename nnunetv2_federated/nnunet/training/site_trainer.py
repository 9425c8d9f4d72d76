"""A trainer that was just built, made a site's: with its cases and its progress."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from nnunetv2.training.logging.nnunet_logger import MetaLogger

from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.run import SiteCases
from nnunetv2_federated.nnunet.training.ranks import check_batch, num_ranks
from nnunetv2_federated.nnunet.training.trainer import FederatedRounds


class _NoPlots(MetaLogger):
    """Logger of a site without nnU-Net's plot, which takes a second an epoch.

    ``federation.png`` shows the same curves.
    """

    def __init__(self, logger: MetaLogger) -> None:
        self.__dict__.update(vars(logger))

    def plot_progress_png(self, output_folder: str) -> None:
        """Draw nothing."""


def prepare_for_site(trainer: FederatedRounds, cases: SiteCases, observer: Observer) -> None:
    """Give a trainer a site's cases, and initialise it; it writes no checkpoints of its own.

    Parameters
    ----------
    trainer
        Trainer that was just built.
    cases
        Cases of the site.
    observer
        Is told of every iteration.

    Raises
    ------
    SettingsError
        If the batch is too small for all ranks that train the site.
    """
    check_batch(num_ranks(), trainer.configuration_manager.batch_size)
    trainer.disable_checkpointing = True
    training = list(cases.training_cases)
    # nnU-Net's loop needs a case to validate: a site without one validates training cases, and
    # what comes of it is told to nobody
    trainer.site_cases = (training, list(cases.validation_cases) or training)
    trainer.on_iteration = observer.iteration_done
    trainer.logger = _NoPlots(trainer.logger)
    trainer.initialize()


@contextlib.contextmanager
def watched(trainer: FederatedRounds) -> Iterator[None]:
    """Count each forward pass of a full validation as an iteration, within.

    nnU-Net has no hook in its validation, and an observer must be able to end this, too.
    """

    def count(*_: object) -> None:
        if trainer.on_iteration is not None:
            trainer.on_iteration()

    hook = trainer.network.register_forward_pre_hook(count)
    try:
        yield
    finally:
        hook.remove()
