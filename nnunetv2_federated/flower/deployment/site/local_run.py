"""A proposed training, made into a run of this machine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.proposals import Proposal
from nnunetv2_federated.federation.queue import Folds, describe_queue, trainings_of
from nnunetv2_federated.federation.run import Run, SiteCases
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.flower.deployment.site.limits import Spent
from nnunetv2_federated.flower.deployment.site.local_site import LocalSite
from nnunetv2_federated.nnunet.data.dataset import Dataset, load_dataset
from nnunetv2_federated.nnunet.data.folds import fold_of_site
from nnunetv2_federated.nnunet.data.integrity import check_dataset
from nnunetv2_federated.nnunet.evaluation.tester import validates_segmentations
from nnunetv2_federated.nnunet.planning.allowed_code import check_trainer
from nnunetv2_federated.nnunet.planning.memory_estimate import check_training
from nnunetv2_federated.nnunet.training.cascade import check_stages
from nnunetv2_federated.nnunet.training.ranks import check_divisible

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalRun:
    """A proposed training with this site's settings and dataset; nothing is written.

    What a method raises may cross the wire: it names the site and a field, never a case or a path.
    """

    here: LocalSite
    proposal: Proposal
    settings: FederationSettings
    """Settings of the federation, as they were proposed."""
    dataset: Dataset
    """The site's dataset, with the plans that were proposed."""

    @classmethod
    def of(cls, proposal: Proposal, here: LocalSite) -> LocalRun:
        """Find what a proposal needs at this site.

        Raises
        ------
        SiteError
            If its settings are not valid, or the site has no dataset with its plans.
        """
        try:
            settings = FederationSettings(**proposal.settings)
        except (SettingsError, TypeError) as error:
            raise SiteError(f"site {here.name}: {error}") from error
        return cls(here, proposal, settings, find_dataset(proposal, here, proposal.folds))

    def check_limits(self, spent: Spent, rounds_done: int) -> None:
        """Check that all that was proposed wants no more than the site gives.

        Parameters
        ----------
        spent
            What the site has given of the dataset so far, over all runs.
        rounds_done
            Rounds of the trainings proposed that are among it.

        Raises
        ------
        SiteError
            If it wants more rounds, epochs or memory of the GPU, or names code that is not allowed.
        """
        here, proposal = self.here, self.proposal
        rounds = self.settings.rounds * proposal.count
        epochs = self.settings.local_epochs
        if proposal.study is not None:  # all of it is approved at once
            rounds, epochs = proposal.study.rounds, proposal.study.most_local_epochs
        widest = self.settings.changed(local_epochs=epochs)
        here.limits.check_federation(widest, spent, rounds - rounds_done, here.name)
        for configuration in proposal.queue:
            check_training(
                self.dataset,
                configuration,
                proposal.trainer,
                here.name,
                batch_size=self.settings.batch_size,
                device=here.device,
                limit_gb=here.limits.max_gpu_gb if here.device == "cuda" else None,
                allowed_modules=here.allowed_modules,
                num_gpus=here.num_gpus,
            )
        trainer = check_trainer(proposal.trainer, here.allowed_modules)
        try:
            check_divisible(
                here.num_gpus,
                private=self.settings.private,
                segmentation=validates_segmentations(trainer),
            )
        except SettingsError as error:
            raise SiteError(f"site {here.name}: {error}") from error

    def check_content(self, queue: Mapping[str, Folds]) -> None:
        """Find out now what would end a training later, or spoil it.

        Parameters
        ----------
        queue
            Configurations and folds to look at.

        Raises
        ------
        SiteError
            If the dataset does not agree with itself.
        """
        trainer = check_trainer(self.proposal.trainer, self.here.allowed_modules)
        segmentation = validates_segmentations(trainer)
        try:
            for configuration, folds in queue.items():
                for line in check_dataset(
                    self.dataset, configuration, folds, segmentation=segmentation
                ):
                    logger.warning(line)
        except SettingsError as error:  # names cases: for this site's log only
            logger.exception("the dataset does not agree with itself")
            raise SiteError(
                f"site {self.here.name}: its dataset does not agree with itself; there, "
                "nnUNetv2_federated_check and the site's log say what"
            ) from error

    def run(self) -> Run:
        """Return the run of this site alone.

        Raises
        ------
        SiteError
            If a stage of a cascade lacks files of the other.
        """
        proposal, dataset = self.proposal, self.dataset
        training, validation = fold_of_site(dataset, proposal.configuration, proposal.fold)
        # limits that belong to all sites together mean nothing in a run with one
        own = asdict(self.settings) | {
            "sites_per_round": None,
            "min_replies": None,
            "seed": self.settings.seed + proposal.site_index,
        }
        run = Run(
            dataset=dataset.name,
            configuration=proposal.configuration,
            fold=proposal.fold,
            trainer=proposal.trainer,
            plans_name=proposal.plans_name,
            device=self.here.device,
            settings=FederationSettings(**own),
            sites=(SiteCases(self.here.name, dataset.name, tuple(training), tuple(validation)),),
            run_id=proposal.run_id,
            npz=proposal.npz,
            queue=proposal.folds if proposal.count > 1 else {},
            num_gpus=self.here.num_gpus,
            study=proposal.study,
            trial=proposal.trial,
        )
        try:
            check_stages(run)
        except SettingsError as error:  # names cases and folders
            logger.error("a stage of the cascade is missing: %s", error)  # noqa: TRY400
            raise SiteError(
                f"site {self.here.name}: {run.configuration} lacks files of the other stage of its "
                "cascade: preprocess both, and train the first on fold all, or on every fold, with "
                "the same trainer and plans; the site's log says more"
            ) from error
        return run


def find_dataset(proposal: Proposal, here: LocalSite, queue: Mapping[str, Folds]) -> Dataset:
    """Load the site's dataset if it has the federation's plans.

    Parameters
    ----------
    proposal
        What was proposed.
    here
        What the hospital offers.
    queue
        Configurations and folds that it needs to have.

    Raises
    ------
    SiteError
        If not; in the same words whatever is the reason, which only the site's log says.
    """
    refusal = SiteError(
        f"site {here.name}: no dataset preprocessed for {describe_queue(queue)}, with "
        f"plans {proposal.plans_name} of SHA-256 "
        f"{proposal.plans_hash[:12]}; plan together, or copy the federation's plans and "
        "preprocess again; the site's log says more"
    )
    try:
        dataset = load_dataset(here.dataset, proposal.plans_name)
        for configuration, fold in trainings_of(queue):
            fold_of_site(dataset, configuration, fold)
    except SettingsError as error:
        logger.error("the dataset does not fit: %s", error)  # noqa: TRY400  # it says all
        raise refusal from error
    except Exception as error:  # a file of that name may hold anything
        logger.exception("the dataset does not fit")
        raise refusal from error
    if dataset.plans_hash != proposal.plans_hash:
        logger.error("the plans %s here have SHA-256 %s", proposal.plans_name, dataset.plans_hash)
        raise refusal
    return dataset
