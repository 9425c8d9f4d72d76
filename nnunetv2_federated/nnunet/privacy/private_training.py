"""How a site trains with differential privacy: numbers that its promise follows from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.text import some_cases


@dataclass(frozen=True)
class PrivateTraining:
    """What every private step of a site has in common.

    Raises
    ------
    SettingsError
        If a number is out of range, or the patients do not have their cases to themselves.
    """

    clip: float
    """Largest norm (L2) of what a patient adds to a step."""
    expected_batch: int
    """Expected number of patients of a step; the sum of a step is divided by it."""
    patches: int
    """Patches of the case that is chosen of a patient."""
    noise_multiplier: float
    """Standard deviation of the noise in units of ``clip``; 0 clips without noise."""
    probability: float
    """Probability with which a patient is drawn for a step."""
    patients: Mapping[str, tuple[str, ...]] = field(repr=False)
    """Training cases of each patient."""

    def __post_init__(self) -> None:
        for name, value, allowed, fits in (
            ("clip", self.clip, "above 0", self.clip > 0),
            ("batch", self.expected_batch, "1 or more", self.expected_batch >= 1),
            ("patches", self.patches, "1 or more", self.patches >= 1),
            ("noise", self.noise_multiplier, "0 or more", self.noise_multiplier >= 0),
        ):
            if not (math.isfinite(value) and fits):
                raise SettingsError(f"--dp-{name} {value}: must be a number, {allowed}.")
        if not 0 < self.probability <= 1:
            raise SettingsError(
                f"a patient is drawn with probability {self.probability}: it must be above 0 and "
                "at most 1 (--dp-batch by the number of patients)."
            )
        _check_patients(self.patients)


def _check_patients(patients: Mapping[str, tuple[str, ...]]) -> None:
    cases = Counter(case for its_cases in patients.values() for case in its_cases)
    shared = [case for case, number in cases.items() if number > 1]
    if shared or not cases or not all(patients.values()):
        what = f"{some_cases(shared)} twice" if shared else "a patient without case, or none"
        raise SettingsError(f"patients with {what}: give every case one patient in the case table.")
