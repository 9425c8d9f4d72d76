"""A finished model that is attacked, and the cases of a dataset that it was trained on or not."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.paths import nnUNet_results

from nnunetv2_federated.experiment.dataset_check import usual_trainer
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.files import write_atomically
from nnunetv2_federated.federation.privacy_attacks import (
    CanaryAudit,
    MembershipTest,
    write_attack,
)
from nnunetv2_federated.federation.run import RUN_FILE, Run, SiteCases, read_run
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.nnunet.data.dataset import Dataset, load_dataset, read_json
from nnunetv2_federated.nnunet.data.folds import fold_of_site
from nnunetv2_federated.nnunet.device import choose_device
from nnunetv2_federated.nnunet.environment import environment, quiet
from nnunetv2_federated.nnunet.training.build_trainer import build_trainer, initialize
from nnunetv2_federated.nnunet.training.checkpoint_file import read_network_weights, unreadable
from nnunetv2_federated.nnunet.training.trainer import FederatedRounds, federated_trainer
from nnunetv2_federated.nnunet.training.weights import unwrap

CHECKPOINT = "checkpoint_final.pth"


@dataclass(frozen=True)
class Target:
    """What is attacked, as a user names it."""

    dataset: str
    configuration: str
    fold: int | str
    trainer: str | None = None
    """Trainer as ``-tr``; ``None`` for the one the configuration's network is for."""
    plans: str = "nnUNetPlans"
    device: str | None = None
    """``None`` for CUDA if there is a device, else the CPU."""

    def run(self, dataset: Dataset, settings: FederationSettings | None = None) -> Run:
        """Return a run, of no site, with which a trainer of the target is built."""
        return Run(
            dataset=dataset.name,
            configuration=self.configuration,
            fold=self.fold,
            trainer=self.trainer or usual_trainer(dataset, self.configuration),
            plans_name=self.plans,
            device=choose_device(self.device),
            settings=settings or FederationSettings(),
            sites=(),
        )


@dataclass(frozen=True)
class AttackedModel:
    """A finished model in ``nnUNet_results``."""

    dataset: Dataset
    """Dataset of the site, with the plans of the model."""
    run: Run
    folder: Path
    """Folder of the fold."""

    @property
    def name(self) -> str:
        """Dataset, trainer and fold, as ``nnUNet_results`` has them."""
        return f"{self.dataset.name} {self.folder.parent.name} {self.folder.name}"

    @property
    def checkpoint(self) -> Path:
        """File with the final weights."""
        return self.folder / CHECKPOINT


def find_model(target: Target) -> AttackedModel:
    """Find a finished model, trained in a federation or by nnU-Net's own command.

    Raises
    ------
    SettingsError
        If the dataset is unknown or not preprocessed, or there is no such model.
    """
    dataset = load_dataset(target.dataset, target.plans)
    run = target.run(dataset)
    base = Path(nnUNet_results.require()) / dataset.name
    names = dict.fromkeys((run.trainer, federated_trainer(run.trainer).__name__))
    folders = [
        base / f"{name}__{target.plans}__{target.configuration}" / f"fold_{target.fold}"
        for name in names
    ]
    found = [folder for folder in folders if (folder / CHECKPOINT).is_file()]
    if not found:
        raise SettingsError(
            f"{' and '.join(str(folder) for folder in folders)} hold no {CHECKPOINT}: train "
            "first, or give -tr, -p and nnUNet_results of a model that is finished."
        )
    plans = read_json(found[0].parent / "plans.json")  # what was trained, with --batchnorm group
    return AttackedModel(dataclasses.replace(dataset, plans=plans), run, found[0])


def members_and_others(model: AttackedModel, site: str | None) -> tuple[list[str], list[str]]:
    """Return the cases of the dataset that a model was trained on, and cases that it was not.

    Of a federation on this machine they are the training and the validation cases of its sites;
    otherwise those of the fold.

    Parameters
    ----------
    model
        Model to attack.
    site
        Site of a federation on this machine whose cases count; ``None`` for all.

    Raises
    ------
    SettingsError
        If there is no such site, or the model was trained on every case.
    """
    sites = _chosen_sites(model, site)
    if sites:
        members = {case for chosen in sites for case in chosen.training_cases}
        others = {case for chosen in sites for case in chosen.validation_cases}
    else:
        run = model.run
        members, others = map(set, fold_of_site(model.dataset, run.configuration, run.fold))
    others -= members
    if not others:
        raise SettingsError(
            f"fold {model.run.fold}: this training kept no case of {model.dataset.name} out, with "
            "which its own could be compared; attack a model of fold 0 to 4."
        )
    return sorted(members), sorted(others)


def _chosen_sites(model: AttackedModel, name: str | None) -> list[SiteCases]:
    """Return the sites of a federation on this machine with cases of the dataset, or one of them.

    Raises
    ------
    SettingsError
        If there is none of the name.
    """
    federation = model.folder / "federation"
    known = read_run(federation).sites if (federation / RUN_FILE).is_file() else ()
    sites = [s for s in known if s.dataset == model.dataset.name and name in (None, s.name)]
    if name is not None and not sites:
        names = ", ".join(s.name for s in known) or "no sites of this machine"
        raise SettingsError(f"--site {name}: {model.name} was trained at {names}.")
    return sites


@contextmanager
def a_trainer(
    run: Run, dataset: Dataset, trainer_class: type[FederatedRounds] | None = None
) -> Iterator[FederatedRounds]:
    """Build and initialise a trainer for a while, and leave nothing behind.

    Parameters
    ----------
    run, dataset, trainer_class
        As of :func:`.build_trainer`.
    """
    with tempfile.TemporaryDirectory() as scratch, environment(nnUNet_results=scratch), quiet():
        trainer = build_trainer(run, dataset, trainer_class)
        initialize(trainer, run)
        yield trainer


def load_weights(trainer: FederatedRounds, path: Path) -> None:
    """Load the weights of a checkpoint into a trainer's network, all of them.

    Raises
    ------
    SettingsError
        If the file cannot be read, or has weights of another network.
    """
    try:
        weights = read_network_weights(path)
    except Exception as error:  # torch.load raises a dozen unrelated types
        raise SettingsError(f"{path}: {unreadable(path, error)}") from error
    try:
        unwrap(trainer.network).load_state_dict(weights)
    except RuntimeError as error:
        raise SettingsError(
            f"{path}: has weights of another network than {trainer.configuration_name} of "
            f"{trainer.plans_manager.dataset_name} has; give a model of the same plans."
        ) from error


def write_found(path: Path, found: CanaryAudit | MembershipTest, section: str) -> None:
    """Write what an attack found as JSON, and a section in Markdown beside it.

    Raises
    ------
    SettingsError
        If the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_attack(path, found)
        write_atomically(path.with_suffix(".md"), section)
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be written ({error.strerror}): give a folder you may write to with -o."
        ) from error
