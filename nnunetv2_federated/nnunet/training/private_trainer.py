"""Federated trainers whose steps are differentially private for a site's patients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.privacy.private_steps import PrivateSteps
from nnunetv2_federated.nnunet.privacy.requirements import check_trainer
from nnunetv2_federated.nnunet.privacy.site_privacy import Budget, SitePrivacy
from nnunetv2_federated.nnunet.training.optimizer import ServerRate
from nnunetv2_federated.nnunet.training.proximal_loss import ProximalLoss
from nnunetv2_federated.nnunet.training.shared_memory import (
    batch_bytes,
    check_shared_memory,
    queued_patients,
)
from nnunetv2_federated.nnunet.training.trainer import (
    FederatedRounds,
    federate,
    federated_trainer,
)


class PrivateRounds(FederatedRounds, PrivateSteps):
    """Federated rounds around private steps."""

    @contextlib.contextmanager
    def proximal_term(self, mu: float) -> Iterator[None]:
        """Add FedProx's term behind the noise, within.

        The term is no function of a patient. In the loss it would take up the norm to which a
        patient's gradient is clipped.
        """
        if self.privacy is None:
            with super().proximal_term(mu):
                yield
            return
        if mu > 0:
            self.after_noise = ProximalLoss(self.loss, self.network, mu).add_gradients
        try:
            yield
        finally:
            self.after_noise = None

    def get_dataloaders(self) -> tuple[Any, Any]:  # noqa: D102
        if self.privacy is not None:
            batch = batch_bytes(
                max(self.privacy.patches, self.batch_size),
                self.configuration_manager.patch_size,
                self.num_input_channels,
                self.label_manager,
            )
            check_shared_memory(batch, pinned=self.device.type == "cuda", queued=queued_patients)
        return super().get_dataloaders()


def privately(trainer: type) -> type[PrivateRounds]:
    """Return the federated sibling of any trainer that can train privately.

    It has the name of the usual sibling, ``<Name>Federated``, and trains as that one does until
    its ``privacy`` is set.

    Parameters
    ----------
    trainer
        Trainer, or its federated sibling.

    Raises
    ------
    SettingsError
        If the trainer cannot be federated, or is federated by a class with code of its own, which
        the private steps cannot be put into.
    """
    if issubclass(trainer, PrivateRounds):
        return trainer
    federated = federate(trainer)
    plain = next(c for c in federated.__mro__ if not issubclass(c, ServerRate))
    if federated.__bases__ != (FederatedRounds, plain) or any(
        map(_is_code, vars(federated).items())
    ):
        raise SettingsError(
            f"trainer {trainer.__name__} is federated by code of its own, into which no private "
            f"steps can be put: give {plain.__name__}, or write its code in a trainer that is not "
            "federated."
        )
    return type(federated.__name__, (PrivateRounds, plain), {})


def _is_code(attribute: tuple[str, object]) -> bool:
    """Whether an attribute of a class is something that it does or sets itself."""
    name, value = attribute
    return callable(value) or not name.startswith("__")


def trainer_of_sites(run: Run) -> type[FederatedRounds]:
    """Return the trainer that the sites of a run train with.

    Raises
    ------
    SettingsError
        If there is no such trainer, or it cannot train as the run wants.
    """
    trainer = federated_trainer(run.trainer)
    return privately(trainer) if run.settings.private else trainer


def check_privacy(run: Run, trainer: FederatedRounds) -> None:
    """Find what keeps the sites of this machine from their promises, before anything is written.

    Parameters
    ----------
    run
        Every choice made.
    trainer
        Initialised trainer of the run.

    Raises
    ------
    SettingsError
        If a site, its patients, or the trainer cannot be protected as the run wants.
    """
    if not run.settings.private:
        return
    trainer_of_sites(run)
    for site in run.sites:
        dataset = load_dataset(site.dataset, run.plans_name)
        iterations = trainer.num_iterations_per_epoch
        check_trainer(trainer, SitePrivacy(run, site, dataset, iterations, Budget()).training)
