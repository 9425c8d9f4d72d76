"""The noise of a queue of trainings, which together cost a patient at most the epsilon chosen."""

from __future__ import annotations

import math
from collections import Counter

from nnunetv2_federated.federation.queue import trainings_of
from nnunetv2_federated.federation.run import Run, SiteCases
from nnunetv2_federated.nnunet.data.dataset import Dataset
from nnunetv2_federated.nnunet.data.folds import fold_of_site
from nnunetv2_federated.nnunet.privacy.accounting import default_delta
from nnunetv2_federated.nnunet.privacy.calculator import promise
from nnunetv2_federated.nnunet.privacy.patients import patients_of_site


def noise_of_queue(
    run: Run, cases: SiteCases, dataset: Dataset, iterations_per_epoch: int | None
) -> float:
    """Return one noise multiplier for all trainings of a queue.

    Of five folds a patient is trained on in four. Counted is the patient who is in most trainings,
    each as long as the longest, with the probability of the smallest and the delta of the largest:
    what the ledger counts in the end is never more than the epsilon chosen.

    Parameters
    ----------
    run
        One training of the queue, with ``dp_epsilon``.
    cases
        Cases of the site in that training.
    dataset
        Dataset of the site.
    iterations_per_epoch
        Training iterations of an epoch; ``None`` where it goes through all patients.

    Raises
    ------
    SettingsError
        If a fold does not exist, a patient is not known, or delta means nothing for so many.
    """
    settings = run.settings
    here = {*cases.training_cases, *cases.validation_cases}
    trained: Counter[str] = Counter()
    patients = []
    for configuration, fold in trainings_of(run.trainings):
        training, _ = fold_of_site(dataset, configuration, fold)
        found = patients_of_site(dataset, [case for case in training if case in here]).cases
        trained.update(found.keys())
        patients.append(len(found))
    epochs = settings.rounds * settings.local_epochs
    iterations = iterations_per_epoch or math.ceil(max(patients) / settings.dp_batch)
    most = max(trained.values())
    delta = default_delta(max(patients)) if settings.dp_delta is None else settings.dp_delta
    together = promise(
        min(patients),
        settings.dp_batch,
        most * epochs * iterations,
        epsilon=settings.dp_epsilon,
        delta=delta,
    )
    return together.mechanism.noise_multiplier
