"""Poisson sampling of patients through a loader."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.nnunet.privacy.poisson import PoissonPatients

PATIENTS = {f"p{i:02d}": (f"p{i:02d}_a", f"p{i:02d}_b")[: 1 + i % 2] for i in range(40)}
"""Forty patients; every second one has two cases."""


class Loader:
    """Draws its batch from ``indices``, as nnU-Net's loader does."""

    transforms = None

    def __init__(self, cases: Sequence[str]) -> None:
        self.indices = list(cases)
        self.batch_size = 7

    def generate_train_batch(self) -> dict[str, Any]:
        keys = np.random.choice(self.indices, self.batch_size)
        return {"data": np.random.uniform(size=self.batch_size), "keys": keys}


def sampler(
    patients: Mapping[str, Sequence[str]] = PATIENTS, probability: float = 0.25, **given: Any
) -> PoissonPatients:
    loader = Loader([case for cases in patients.values() for case in cases])
    return PoissonPatients(loader, patients, probability, 3, **given)


def test_batch_sizes_are_binomial_and_patients_independent() -> None:
    drawing = sampler(rng=random.Random(0))  # noqa: S311
    draws = [[case[:3] for case in drawing.draw()] for _ in range(2000)]

    sizes = [len(drawn) for drawn in draws]
    assert np.mean(sizes) == pytest.approx(10, abs=0.3)  # q N; standard error 0.06
    assert np.var(sizes) == pytest.approx(7.5, abs=1.2)  # q (1 - q) N; standard error 0.24
    assert all(max(Counter(drawn).values()) == 1 for drawn in draws)  # of a patient, one case
    taken = np.array([[patient in drawn for patient in PATIENTS] for drawn in draws], float)
    assert np.abs(taken.mean(0) - 0.25).max() < 0.05  # one case or two: the same probability
    correlations = np.corrcoef(taken.T)[np.triu_indices(40, 1)]
    assert np.abs(correlations).max() < 0.11  # standard error 0.022, 780 pairs
    # nor with the draw before
    assert abs(np.corrcoef(sizes[1:], sizes[:-1])[0, 1]) < 0.1


def test_each_case_of_a_patient_is_as_likely() -> None:
    drawing = sampler({"p": ("a", "b", "c")}, 1.0, rng=random.Random(0))  # noqa: S311
    found = Counter(case for _ in range(3000) for case in drawing.draw())
    assert set(found) == {"a", "b", "c"}
    assert all(abs(number - 1000) < 130 for number in found.values())  # standard deviation 26


def test_a_known_seed_tells_nothing_of_who_is_drawn() -> None:
    def draw() -> list[str]:
        random.seed(1)
        np.random.seed(1)
        return sampler(probability=0.5).draw()

    assert draw() != draw()


def test_a_batch_has_patches_of_one_case_of_each_drawn_patient() -> None:
    drawing = sampler(rng=random.Random(4))  # noqa: S311
    expected = sampler(rng=random.Random(4)).draw()  # noqa: S311
    batches = list(next(drawing)["patients"])

    assert [list(batch["keys"]) for batch in batches] == [[case] * 3 for case in expected]
    assert all(len(batch["data"]) == 3 for batch in batches)
    assert len(expected) > 3


def test_a_batch_may_have_no_patient_and_that_is_no_error() -> None:
    assert list(next(sampler(probability=1e-12))["patients"]) == []


def test_augmentation_does_not_follow_from_a_known_seed() -> None:
    # nor, therefore, from the patients before
    def augmented() -> float:
        np.random.seed(1)
        batch = sampler().patches_of("p03_b")
        return float(batch["data"][0])

    assert augmented() != augmented()


def test_a_loader_with_cases_of_its_own_is_refused() -> None:
    class Own(Loader):
        def generate_train_batch(self) -> dict[str, Any]:
            return {"data": None, "keys": ["p00_a", "p01_a"]}

    class Silent(Loader):
        def generate_train_batch(self) -> dict[str, Any]:
            return {"data": None}

    with pytest.raises(SettingsError, match=r"Own draws cases in its own way \(of p00_a it took"):
        PoissonPatients(Own([]), PATIENTS, 0.5, 2).patches_of("p00_a")
    with pytest.raises(SettingsError, match="it took none that it names"):
        PoissonPatients(Silent([]), PATIENTS, 0.5, 2).patches_of("p00_a")


def test_a_loader_that_has_drawn_ahead_starts_again() -> None:
    class Ahead(Loader):
        def __init__(self, cases: Sequence[str]) -> None:
            super().__init__(cases)
            self.waiting = ["x"]

        def restart(self) -> None:
            self.waiting = []

        def generate_train_batch(self) -> dict[str, Any]:
            self.waiting += list(self.indices) * self.batch_size
            return {"keys": self.waiting[: self.batch_size]}

    assert PoissonPatients(Ahead([]), PATIENTS, 0.5, 2).patches_of("p00_a")["keys"] == [
        "p00_a",
        "p00_a",
    ]
