"""Poisson sampling of patients, with nnU-Net's own crops and augmentation of each."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.nnunet.privacy.keyed_randomness import forget_seed


class PoissonPatients:
    """Data loader whose batch is every patient with the same probability, independently.

    Parameters
    ----------
    loader
        Training loader of nnU-Net or of ``nnunetv2_cls``, or any that draws its batch from
        ``indices`` and names the cases under ``keys``. It makes all batches from now on.
    patients
        Cases of each patient. Of a patient who is drawn one case is chosen, all being equally
        likely.
    probability
        Probability with which a patient is drawn.
    patches
        Patches of the one case. A trainer's loss averages over them before the gradient is
        clipped (De et al. 2022, arXiv:2204.13650, "augmentation multiplicity").
    rng
        Generator of the draws; the operating system's if ``None``.
    """

    def __init__(
        self,
        loader: Any,  # noqa: ANN401  # nnU-Net's loaders
        patients: Mapping[str, Sequence[str]],
        probability: float,
        patches: int,
        rng: random.Random | None = None,
    ) -> None:
        self._loader = loader
        self._patients = {patient: tuple(cases) for patient, cases in patients.items()}
        self._probability = probability
        self._patches = patches
        self._rng = rng or random.SystemRandom()
        self.transforms = loader.transforms
        """Transforms of the loader, which stay as they are."""
        loader.batch_size = patches

    def __iter__(self) -> Iterator[dict[str, Iterator[dict[str, Any]]]]:
        return self

    def __next__(self) -> dict[str, Iterator[dict[str, Any]]]:
        """Draw patients; return ``{"patients": batches}``, a batch of each, made when asked for.

        So the patches of one patient are in memory at a time. There may be no patient at all.
        """
        return {"patients": map(self.patches_of, self.draw())}

    def draw(self) -> list[str]:
        """Return a case of every patient who is drawn."""
        return [
            self._rng.choice(cases)
            for cases in self._patients.values()
            if self._rng.random() < self._probability
        ]

    def patches_of(self, case: str) -> dict[str, Any]:
        """Return a batch of the loader with patches of one case, augmented independently.

        Raises
        ------
        SettingsError
            If the loader takes other cases than those in its ``indices``.
        """
        forget_seed()
        self._loader.indices = [case]
        if hasattr(self._loader, "restart"):  # it may have drawn ahead
            self._loader.restart()
        batch: dict[str, Any] = self._loader.generate_train_batch()
        keys = [str(key) for key in batch.get("keys", ())]
        if keys != [case] * self._patches:
            raise SettingsError(
                f"the trainer's {type(self._loader).__name__} draws cases in its own way (of "
                f"{case} it took {', '.join(keys) or 'none that it names'}): with differential "
                "privacy the patients are drawn for it; give a trainer with nnU-Net's loader."
            )
        return batch
