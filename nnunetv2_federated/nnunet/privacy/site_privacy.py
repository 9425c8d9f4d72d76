"""What a site promises its patients for a training, and the ledger in which it is counted."""

from __future__ import annotations

import contextlib
import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.messages import PrivacyTerms
from nnunetv2_federated.federation.privacy import LARGEST_EPSILON, PrivacyChoices
from nnunetv2_federated.federation.privacy_budget import check_budget
from nnunetv2_federated.federation.privacy_ledger import PrivacyLedger
from nnunetv2_federated.federation.privacy_rows import Row
from nnunetv2_federated.federation.run import Run, SiteCases
from nnunetv2_federated.nnunet.data.dataset import Dataset
from nnunetv2_federated.nnunet.privacy.accounting import (
    ACCOUNTANT,
    default_delta,
    epsilon_of,
)
from nnunetv2_federated.nnunet.privacy.calculator import Promise, promise
from nnunetv2_federated.nnunet.privacy.patients import patients_of_site
from nnunetv2_federated.nnunet.privacy.private_training import PrivateTraining
from nnunetv2_federated.nnunet.privacy.queue_noise import noise_of_queue

LEDGER = Path("privacy", "ledger.json")
"""Where a dataset's ledger is, below its folder in ``nnUNet_preprocessed``."""


@dataclass(frozen=True)
class Budget:
    """What a hospital allows itself, and how it records what was paid."""

    max_epsilon: float | None = None
    """Epsilon that all trainings together may cost a patient; ``None`` for no limit."""
    record: Callable[[int, float, float], None] | None = None
    """Called once a round is in the ledger: its number from 0, epsilon of all trainings together,
    and delta."""


class SitePrivacy:
    """A site's promise for the whole of a training.

    The noise follows from the site's own number of patients, before the first round.

    Parameters
    ----------
    run
        Run of the federation, whose settings have differential privacy.
    cases
        Cases of the site.
    dataset
        Dataset of the site. Its ledger is the file :data:`LEDGER` in its folder.
    iterations_per_epoch
        Training iterations of an epoch of the trainer; ``None`` where it follows from its batches,
        and is then so many that an epoch has as many patients as the site, on average.
    budget
        What the hospital allows itself.

    Raises
    ------
    SettingsError
        If a patient is not known, there is only one, delta means nothing for so many, or the noise
        is so little that there is no epsilon.
    """

    def __init__(
        self,
        run: Run,
        cases: SiteCases,
        dataset: Dataset,
        iterations_per_epoch: int | None,
        budget: Budget,
    ) -> None:
        settings = run.settings
        patients = patients_of_site(dataset, cases.training_cases)
        count = len(patients.cases)
        self.unit = patients.unit
        self._budget = budget
        self._told = settings.dp_validation
        self.iterations_per_epoch = iterations_per_epoch or math.ceil(count / settings.dp_batch)
        """Iterations of an epoch, which the trainer has to keep to."""
        self._iterations = settings.local_epochs * self.iterations_per_epoch
        self._total = settings.rounds * self._iterations
        with _naming(cases.name):
            noise = settings.dp_noise
            if noise is None and run.queue:
                noise = noise_of_queue(run, cases, dataset, iterations_per_epoch)
            self._promised = _promise(settings, count, self._total, noise)
        # a coordinator that proposes a larger delta has no more of the budget for it
        self._delta_of_budget = min(self._promised.delta, default_delta(count))
        self._mechanism = self._promised.mechanism
        self.training = PrivateTraining(
            clip=settings.dp_clip,
            expected_batch=self._promised.batch,
            patches=settings.dp_patches,
            noise_multiplier=self._mechanism.noise_multiplier,
            probability=self._mechanism.probability,
            patients=patients.cases,
        )
        self._ledger = PrivacyLedger(dataset.folder / LEDGER, dataset.name)
        self._row = Row(
            run=run.run_id or f"{run.trainer}__{run.plans_name}__{run.configuration}",
            round=0,
            fold=str(run.fold),
            arm=cases.name,
            mechanism=self._mechanism,
            patients=frozenset(patients.cases),
            digest="",
        )

    def terms(self, rounds_done: int) -> PrivacyTerms:
        """Return the promise, with what the ledger counts.

        Parameters
        ----------
        rounds_done
            Rounds of this training that are charged already.

        Raises
        ------
        SiteError
            If the whole of this training would pass the site's own limit.
        CheckpointError
            If the ledger is damaged or gone.
        """
        left = replace(self._mechanism, steps=self._total - rounds_done * self._iterations)
        spent = self._check(self._ledger.rows(), replace(self._row, mechanism=left))
        return PrivacyTerms(
            unit=self.unit,
            patients=len(self.training.patients),
            probability=self.training.probability,
            noise_multiplier=self.training.noise_multiplier,
            clip=self.training.clip,
            iterations=self._total,
            delta=self._promised.delta,
            epsilon=self._promised.epsilon,
            epsilon_replace_one=self._promised.epsilon_replace_one,
            epsilon_spent=spent,
            max_epsilon=self._budget.max_epsilon,
            accountant=ACCOUNTANT,
            told_of_validation=self._told,
        )

    def charge(self, server_round: int) -> None:
        """Write a round into the ledger, before it is trained.

        A round that is trained again has other noise, and is charged again.

        Raises
        ------
        SiteError
            If it would pass the site's own limit.
        CheckpointError
            If the ledger is damaged or gone.
        OSError
            If it cannot be written.
        """
        row = replace(
            self._row,
            round=server_round,
            mechanism=replace(self._mechanism, steps=self._iterations),
            digest=uuid.uuid4().hex,
        )
        spent = []
        self._ledger.charge(row, lambda rows: spent.append(self._check(rows, row)))
        if self._budget.record is not None:
            self._budget.record(server_round, spent[0], self._delta_of_budget)

    def _check(self, rows: Sequence[Row], planned: Row) -> float:
        """Return what the patients will have spent, if the site allows it."""
        most = self._budget.max_epsilon or math.inf
        return check_budget(rows, planned, self._delta_of_budget, most, epsilon_of)


@contextlib.contextmanager
def _naming(site: str) -> Iterator[None]:
    """Name the site in an error, as the others may do with the same settings."""
    try:
        yield
    except SettingsError as error:
        raise SettingsError(f"site {site}: {error}") from error


def _promise(
    settings: PrivacyChoices, patients: int, iterations: int, noise: float | None
) -> Promise:
    promised = promise(
        patients,
        settings.dp_batch,
        iterations,
        epsilon=settings.dp_epsilon if noise is None else None,
        noise=noise,
        delta=settings.dp_delta,
    )
    if promised.epsilon > LARGEST_EPSILON:
        noise = promised.mechanism.noise_multiplier
        raise SettingsError(
            f"--dp-noise {noise:g}: so little noise protects nobody (epsilon "
            f"{promised.epsilon:.3g}, at most {LARGEST_EPSILON:g} is allowed); 1 is usual."
        )
    return promised
