"""Trainings with canaries: what they show of epsilon, beside what the accountant says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunetv2_federated.experiment.attacked_model import Target, a_trainer, write_found
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.privacy_attacks import CANARIES_FILE, CanaryAudit
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.data.folds import fold_of_site
from nnunetv2_federated.nnunet.environment import environment
from nnunetv2_federated.nnunet.privacy.accounting import Mechanism, epsilon_of
from nnunetv2_federated.nnunet.privacy.auditing import audit
from nnunetv2_federated.nnunet.privacy.canaries import (
    Canaries,
    MakeSum,
    release_scores,
    toss,
)
from nnunetv2_federated.nnunet.privacy.canary_patients import (
    CanaryPatients,
    CanaryWatch,
    patients_of_canaries,
)
from nnunetv2_federated.nnunet.privacy.clipped_sum import ClippedSum
from nnunetv2_federated.nnunet.privacy.keyed_randomness import keyed_generator
from nnunetv2_federated.nnunet.privacy.patients import patients_of_site
from nnunetv2_federated.nnunet.privacy.private_steps import PrivateSteps
from nnunetv2_federated.nnunet.privacy.private_training import PrivateTraining
from nnunetv2_federated.nnunet.training.optimizer import ServerRate
from nnunetv2_federated.nnunet.training.private_trainer import PrivateRounds, privately
from nnunetv2_federated.nnunet.training.trainer import federated_trainer
from nnunetv2_federated.report.privacy_attacks import canary_section

_PATCHES = 2


@dataclass(frozen=True)
class CanarySettings:
    """Canaries, and the steps that they take part in."""

    canaries: int
    steps: int
    noise: float
    """Noise multiplier: standard deviation of the noise in clipping norms."""
    clip: float
    probability: float
    """Probability with which a step draws a patient or a canary."""
    delta: float

    @property
    def mechanism(self) -> Mechanism:
        """The steps, as the accountant takes them."""
        return Mechanism(self.probability, self.noise, self.steps)


def audit_release(
    settings: CanarySettings,
    rng: np.random.Generator | None = None,
    make: MakeSum = ClippedSum,
) -> CanaryAudit:
    """Audit what clips, adds up and adds noise, with canaries alone.

    Parameters
    ----------
    settings
        Canaries and steps.
    rng
        Tosses the coins, and draws; ``None`` for a new one.
    make
        As of :func:`.release_scores`.

    Raises
    ------
    SettingsError
        If the accountant is not installed.
    """
    rng = rng or np.random.default_rng()
    epsilon = _epsilon(settings)
    included = toss(settings.canaries, rng)
    noise = keyed_generator(torch.device("cpu"))
    scores = release_scores(
        included, settings.mechanism, settings.clip, rng=rng, generator=noise, make=make
    )
    return audit(scores, included, settings.delta, epsilon)


def audit_training(
    target: Target, settings: CanarySettings, rng: np.random.Generator | None = None
) -> CanaryAudit:
    """Audit a training of a site's patients, among whom canaries are drawn.

    The trained network is thrown away.

    Parameters
    ----------
    target
        Dataset, fold and trainer.
    settings
        Canaries, and the steps of the training.
    rng
        As of :func:`audit_release`.

    Raises
    ------
    SettingsError
        If the dataset or trainer is unknown, the trainer cannot train with differential
        privacy, its network has fewer parameters than there are canaries, or the accountant is not
        installed.
    """
    rng = rng or np.random.default_rng()
    epsilon = _epsilon(settings)
    dataset = load_dataset(target.dataset, target.plans)
    training, validation = fold_of_site(dataset, target.configuration, target.fold)
    patients = patients_of_site(dataset, training).cases
    included = toss(settings.canaries, rng)
    expected = max(1, round(settings.probability * (len(patients) + int(included.sum()))))
    run = target.run(
        dataset,
        FederationSettings(rounds=1, iterations_per_epoch=settings.steps, val_iterations=1),
    )
    with a_trainer(run, dataset, with_canaries(run.trainer)) as trainer:
        trainer.site_cases = (training, validation or training)
        try:
            trainer.canaries = Canaries(
                trainer.network.parameters(),
                included,
                clip=settings.clip,
                expected=expected,
                rng=rng,
            )
        except ValueError as error:
            raise SettingsError(f"--canaries {settings.canaries}: {error}; give fewer.") from error
        trainer.privacy = PrivateTraining(
            clip=settings.clip,
            expected_batch=expected,
            patches=_PATCHES,
            noise_multiplier=settings.noise,
            probability=settings.probability,
            patients={**patients, **patients_of_canaries(included)},
        )
        with environment(nnUNet_n_proc_DA="0"):
            trainer.run_round(trainer.schedule.lrs[0])
        trainer.close()
        steps = trainer.private_steps
    if steps != settings.steps:
        raise SettingsError(
            f"trainer {run.trainer} took {steps} of {settings.steps} steps: give one whose epochs "
            "are nnU-Net's."
        )
    return audit(trainer.canaries.scores, included, settings.delta, epsilon)


def with_canaries(name: str) -> type[Any]:
    """Return what sites train a trainer with, and canaries among its patients.

    Raises
    ------
    SettingsError
        If there is no such trainer, or it cannot train with differential privacy.
    """
    ancestors = privately(federated_trainer(name)).__mro__
    trainer = next(c for c in ancestors if not issubclass(c, (ServerRate, PrivateSteps)))
    bases = (CanaryWatch, PrivateRounds, CanaryPatients, trainer)
    return type(f"{trainer.__name__}WithCanaries", bases, {})


def _epsilon(settings: CanarySettings) -> float:
    return epsilon_of([settings.mechanism], settings.delta)


def write_audit(found: CanaryAudit, folder: Path) -> Path:
    """Write what an audit found as JSON and as a section in Markdown; return the first file.

    Raises
    ------
    SettingsError
        If the folder cannot be written.
    """
    path = folder / CANARIES_FILE
    write_found(path, found, canary_section(found))
    return path
