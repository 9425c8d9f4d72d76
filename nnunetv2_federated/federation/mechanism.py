"""What a site does to its patients' data under differential privacy, as an accountant counts it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from nnunetv2_federated.federation.errors import SettingsError


@dataclass(frozen=True)
class Mechanism:
    """A number of equal steps, each a Gaussian mechanism on a Poisson sample of the patients.

    Raises
    ------
    SettingsError
        If a number is not one that a step can have.
    """

    probability: float
    """With which a step draws each patient, independently of the others; from 0 to 1."""
    noise_multiplier: float
    """Standard deviation of the noise, in units of the clip; 0 for no noise."""
    steps: int
    """Steps that released a gradient; those whose batch was empty count, too."""

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise SettingsError(f"probability {self.probability}: must be from 0 to 1.")
        if not 0 <= self.noise_multiplier < math.inf:
            raise SettingsError(
                f"noise multiplier {self.noise_multiplier}: must be at least 0, and finite."
            )
        if self.steps < 0:
            raise SettingsError(f"steps {self.steps}: must be at least 0.")

    @property
    def tells(self) -> bool:
        """Whether it tells anything of a patient at all."""
        return self.probability > 0 and self.steps > 0


def merge(mechanisms: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """Add the steps of mechanisms that are alike, and leave out those that tell nothing.

    The order of what is returned does not depend on that of ``mechanisms``.
    """
    steps: dict[tuple[float, float], int] = {}
    for one in mechanisms:
        if one.tells:
            key = one.probability, one.noise_multiplier
            steps[key] = steps.get(key, 0) + one.steps
    return tuple(Mechanism(*key, steps[key]) for key in sorted(steps))
