"""What a training would promise the patients of a site, before it is begun."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.mechanism import Mechanism
from nnunetv2_federated.nnunet.privacy.accounting import (
    check_delta,
    default_delta,
    epsilon_of,
    noise_for,
)

_MOST_STEPS = 10_000_000


@dataclass(frozen=True)
class Promise:
    """Noise of a training, and what the training costs each patient with it."""

    patients: int
    batch: int
    """Patients of a step on average, at most all."""
    mechanism: Mechanism
    delta: float
    epsilon: float
    """If one patient more or less is in the site's data."""
    epsilon_replace_one: float
    """If one patient is another one."""

    def noise_norm(self, parameters: int) -> float:
        """Return the length of a step's noise, in units of the longest mean gradient there can be.

        Parameters
        ----------
        parameters
            Number of parameters that are trained.
        """
        return self.mechanism.noise_multiplier * math.sqrt(parameters) / self.batch


@functools.lru_cache(maxsize=256)  # a run is checked, and its sites are built after that
def promise(
    patients: int,
    batch: int,
    steps: int,
    *,
    epsilon: float | None = None,
    noise: float | None = None,
    delta: float | None = None,
) -> Promise:
    """Return the noise for an epsilon, or the epsilon of a noise.

    Parameters
    ----------
    patients
        Patients of the site, at least 2.
    batch
        Patients of a step on average, at most all; each is drawn with probability ``batch /
        patients``.
    steps
        Steps of the whole training.
    epsilon
        Budget for add/remove.
    noise
        Noise multiplier, in place of ``epsilon``.
    delta
        Delta of the site; ``None`` for ``patients ** -1.1``.

    Raises
    ------
    SettingsError
        If a number is out of range, or not exactly one of ``epsilon`` and ``noise`` is given.
    """
    if (epsilon is None) == (noise is None):
        raise SettingsError(
            "give either an epsilon, for the noise that keeps it, or a noise, for its epsilon."
        )
    if steps > _MOST_STEPS:  # an accountant would be at work for hours
        raise SettingsError(
            f"{steps} private iterations (rounds times local epochs times iterations of an epoch): "
            f"must be at most {_MOST_STEPS}; hundreds are usual."
        )
    delta = default_delta(patients) if delta is None else delta
    check_delta(delta, patients)
    probability = min(1.0, batch / patients)
    if noise is None:
        noise = noise_for(epsilon or 0.0, delta, probability, steps)
    mechanism = Mechanism(probability, noise, steps)
    return _promise(patients, min(batch, patients), mechanism, delta)


def by_steps(of: Promise, steps: Sequence[int]) -> list[Promise]:
    """Return what would be promised after each of some numbers of steps, with the same noise."""
    mechanisms = [replace(of.mechanism, steps=number) for number in steps]
    return [_promise(of.patients, of.batch, one, of.delta) for one in mechanisms]


def _promise(patients: int, batch: int, mechanism: Mechanism, delta: float) -> Promise:
    return Promise(
        patients,
        batch,
        mechanism,
        delta,
        epsilon_of([mechanism], delta),
        epsilon_of([mechanism], delta, relation="replace_one"),
    )
