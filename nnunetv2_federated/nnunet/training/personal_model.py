"""A site's personal model: fine-tuned, mixed with the global one, and kept as nnU-Net keeps models.

The fine-tuning is one epoch of nnU-Net with a new trainer and optimizer, so its hooks, loaders and
``train_step`` are the trainer's own. Its random numbers begin from a seed of their own: a site that
was killed repeats it with the same result. The models are compared on whole validation cases, by
the trainer's own full validation: Dice on random patches (standard deviation 0.003 with 20 batches)
is as noisy as the differences are large.
"""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nnunetv2_federated.federation.aggregation import Vector, is_finite
from nnunetv2_federated.federation.errors import CheckpointError
from nnunetv2_federated.federation.learning_rates import poly_lr
from nnunetv2_federated.federation.messages import ALPHAS, FullValidation, PersonalReport
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.personal import (
    GLOBAL,
    PersonalChoice,
    choose_by,
    interpolate,
    read_choice,
    write_choice,
)
from nnunetv2_federated.federation.run import Run, SiteCases
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.summary import summarise_site
from nnunetv2_federated.nnunet.training.build_trainer import build_trainer, move_output
from nnunetv2_federated.nnunet.training.metadata import write_metadata
from nnunetv2_federated.nnunet.training.randomness import seed_everything
from nnunetv2_federated.nnunet.training.result_folder import result_folder
from nnunetv2_federated.nnunet.training.site_state import kept_tensors
from nnunetv2_federated.nnunet.training.site_trainer import (
    prepare_for_site,
    watched,
)
from nnunetv2_federated.nnunet.training.trainer import FederatedRounds, federated_trainer
from nnunetv2_federated.nnunet.training.weights import federated_tensors, load_vector, to_vector

CHECKPOINT = "checkpoint_final.pth"
EARLIER = ".previous"
"""Behind the name of a fold's folder: the personal model before this one."""
_NEXT_STAGE = "predicted_next_stage"
_AFTER_ROUNDS = 10**6
"""Added to the seed of a site's rounds."""


def personal_folder(run: Run, site: Path, results: Path) -> Path:
    """Return ``<Trainer>Personal__<plans>__<configuration>/fold_X`` of a site's personal model.

    Parameters
    ----------
    run
        Run of the federation.
    site
        Folder of the site in the run's folder: on one machine the model is there, as several sites
        share nnU-Net's results.
    results
        ``nnUNet_results/<Dataset>``: over a network the model is there, beside the site's others.
    """
    trainer = federated_trainer(run.trainer).__name__.removesuffix("Federated")
    name = f"{trainer}Personal__{run.plans_name}__{run.configuration}"
    return (results if run.run_id else site) / name / f"fold_{run.fold}"


@dataclass(frozen=True)
class PersonalTraining:
    """Makes the personal model of one site."""

    run: Run
    cases: SiteCases
    seed: int
    """Seed of the site's rounds."""
    folder: Path
    """Of :func:`personal_folder`."""
    site: Path
    """Folder of the site in the run's folder."""

    @classmethod
    def of(cls, run: Run, index: int, site: Path) -> PersonalTraining:
        """Return the training of a site's personal model.

        Parameters
        ----------
        run
            Run of the federation.
        index
            Position of the site in ``run.sites``.
        site
            Folder of the site in the run's folder.
        """
        results = result_folder(run).parent.parent
        folder = personal_folder(run, site, results)
        return cls(run, run.sites[index], run.settings.seed + index, folder, site)

    def told(self, weights: Vector) -> PersonalReport | None:
        """Return what the server may know of the model; ``None`` if there is none of these weights.

        Parameters
        ----------
        weights
            Global weights after the last round, shape (parameters,).
        """
        if not (self.folder / CHECKPOINT).is_file():
            return None
        choice = read_choice(self.folder, self._made_of(weights))
        return None if choice is None else self._tell(choice)

    def build(self) -> FederatedRounds:
        """Build a new trainer for the fine-tuning, which adds no noise: its result stays here."""
        gc.collect()  # the trainer of the rounds may have taken most of the GPU
        seed_everything(self.seed + _AFTER_ROUNDS)
        shutil.rmtree(self._scratch, ignore_errors=True)
        dataset = load_dataset(self.cases.dataset, self.run.plans_name)
        trainer = build_trainer(self.run, dataset, federated_trainer(self.run.trainer))
        move_output(trainer, self._scratch)
        return trainer

    def make(
        self,
        trainer: FederatedRounds,
        weights: Vector,
        observer: Observer,
    ) -> PersonalReport:
        """Fine-tune, validate, choose, and write the model; return what the server may know.

        The fine-tuning begins with the tensors that the site has kept for itself in its rounds.

        Parameters
        ----------
        trainer
            Trainer of :meth:`build`.
        weights
            Global weights after the last round, shape (parameters,).
        observer
            Receives the progress.

        Raises
        ------
        SiteError
            If the trainer ends its epoch too early.
        """
        prepare_for_site(trainer, self.cases, observer)
        judged, tuned = self._judged(), weights
        if judged:
            observer.site_started(self.cases.name, self.run.settings.personal_iterations)
            _start_from(trainer, weights, kept_tensors(self.site))
            tuned = self._fine_tune(trainer)
        else:  # as a training would have done: it sets what the checkpoint says of mirroring
            trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        found = {}
        # one that diverged is no model, and the global one stays
        for alpha in ALPHAS if judged and is_finite(tuned) else ():
            load_vector(trainer.network, interpolate(weights, tuned, alpha))
            found[alpha] = self._validate(trainer, self._validated(alpha), len(judged))
        choice = choose_by(found) if found else PersonalChoice(0, "", {GLOBAL: None})
        load_vector(trainer.network, interpolate(weights, tuned, choice.alpha))
        self._write(trainer, choice, self._made_of(weights))
        shutil.rmtree(self._scratch, ignore_errors=True)
        return self._tell(choice)

    def _tell(self, choice: PersonalChoice) -> PersonalReport:
        settings = self.run.settings
        return choice.tell(
            self.cases.name, min_cases=settings.personal_min_cases, private=settings.private
        )

    @property
    def _scratch(self) -> Path:
        """Folder for what is not kept."""
        return self.site / "personal"

    def _judged(self) -> list[str]:
        """Return the validation cases that are not trained on, as they are on fold ``all``."""
        training = set(self.cases.training_cases)
        return [case for case in self.cases.validation_cases if case not in training]

    def _fine_tune(self, trainer: FederatedRounds) -> Vector:
        """Train one epoch of ``--personal-iterations``; return the weights."""
        settings = self.run.settings
        iterations = settings.personal_iterations
        lr = trainer.initial_lr if settings.personal_lr is None else settings.personal_lr
        trainer.num_iterations_per_epoch = iterations
        trainer.rate_of_step = lambda step: poly_lr(step, iterations, lr)
        trainer.run_round(lr)
        trainer.close()
        return to_vector(trainer.network)

    def _validate(self, trainer: FederatedRounds, folder: Path, cases: int) -> FullValidation:
        """Validate the present weights on whole cases."""
        folder.mkdir(parents=True)
        trainer.output_folder = trainer.output_folder_base = str(folder)
        with watched(trainer):
            trainer.perform_actual_validation()
        return summarise_site(self.cases.name, cases, folder)

    def _validated(self, alpha: float) -> Path:
        return self._scratch / f"alpha_{alpha:g}"

    def _write(self, trainer: FederatedRounds, choice: PersonalChoice, made_of: str) -> None:
        """Write the model as nnU-Net has it; the file that says so comes last.

        A model that follows from something else may be in use: it is kept beside the new one.
        """
        dataset = load_dataset(self.cases.dataset, self.run.plans_name)
        if read_choice(self.folder) is not None:  # whole, and of another federation
            earlier = self.folder.with_name(f"{self.folder.name}{EARLIER}")
            shutil.rmtree(earlier, ignore_errors=True)
            self.folder.rename(earlier)
        write_metadata(trainer, self.folder.parent, dataset.folder / "dataset_fingerprint.json")
        self.folder.mkdir(exist_ok=True)
        validated = self._validated(choice.alpha)
        for part in validated.iterdir() if validated.is_dir() else ():
            if part.name != _NEXT_STAGE:  # the next stage trains on the federation's predictions
                shutil.rmtree(self.folder / part.name, ignore_errors=True)
                shutil.move(part, self.folder / part.name)
        log = self.folder / Path(trainer.log_file).name
        shutil.move(trainer.log_file, log)
        trainer.log_file = str(log)
        trainer.disable_checkpointing = False
        trainer.current_epoch -= 1  # as nnU-Net's on_train_end does: its saving adds one
        trainer.save_checkpoint(str(self.folder / CHECKPOINT))
        trainer.current_epoch += 1
        trainer.disable_checkpointing = True
        write_choice(self.folder, choice, made_of)

    def _made_of(self, weights: Vector) -> str:
        """Return the hash of weights and settings, from which the model follows."""
        settings = self.run.settings
        wanted = [self.run.run_id, self.seed, settings.personal_iterations, settings.personal_lr]
        digest = hashlib.sha256(json.dumps(wanted).encode())
        digest.update(weights.tobytes())
        return digest.hexdigest()


def _start_from(
    trainer: FederatedRounds, weights: Vector, local: Mapping[str, torch.Tensor]
) -> None:
    """Load the global weights, but for what the site keeps for itself."""
    tensors: dict[str, Any] = dict(federated_tensors(trainer.network))
    with torch.no_grad():
        for name in tensors.keys() & local.keys():
            if tensors[name].shape != local[name].shape:
                raise CheckpointError(f"the site's own {name} is of another network")
            tensors[name].copy_(local[name])
    load_vector(trainer.network, weights, keep=local.keys())
