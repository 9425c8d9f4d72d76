"""What a site lets joint planning do: only what was approved."""

from __future__ import annotations

import logging

from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.fingerprint import samples_per_case
from nnunetv2_federated.federation.messages import FingerprintTask, PrepareTask
from nnunetv2_federated.federation.proposals import PlanProposal
from nnunetv2_federated.flower.deployment.site.consent import Consent
from nnunetv2_federated.flower.deployment.site.local_site import LocalSite
from nnunetv2_federated.flower.deployment.site.proposal_file import ProposalFile
from nnunetv2_federated.nnunet.planning.allowed_code import resolve
from nnunetv2_federated.nnunet.planning.raw_site import DEFAULT_PROCESSES, RawSite

logger = logging.getLogger(__name__)

PLANNING_FILE = "planning.json"


class PlanningGuard:
    """Compares what joint planning asks of a site with what its engineer approved.

    Parameters
    ----------
    here
        What the hospital offers.
    consent
        What its engineer has approved.
    """

    def __init__(self, here: LocalSite, consent: Consent) -> None:
        self._here = here
        self._consent = consent
        self._joined = ProposalFile(here.folder / PLANNING_FILE, PlanProposal)

    def join(self, proposal: PlanProposal) -> None:
        """Take part in a planning that was approved.

        Raises
        ------
        SiteError
            If it is not, or names a planner or preprocessor that is none.
        """
        try:
            for kind in ("planner", "preprocessor"):
                if kind in proposal.planner:
                    resolve(kind, proposal.planner[kind], self._here.allowed_modules)
        except SettingsError as error:
            raise SiteError(f"site {self._here.name}: refused a planning: {error}") from error
        self._consent.require(proposal)
        self._joined.write(proposal)

    def raw_site(self) -> RawSite:
        """Return the site's raw dataset, once planning was joined and as long as it is approved.

        Raises
        ------
        SiteError
            If planning was not joined, its approval was withdrawn, or there is no raw dataset.
        """
        self._approved()
        processes = self._here.processes
        try:
            return RawSite.open(
                self._here.dataset,
                site=self._here.name,
                fingerprint_processes=processes or RawSite.fingerprint_processes,
                preprocessing_processes=dict.fromkeys(DEFAULT_PROCESSES, processes)
                if processes
                else None,
                allowed_modules=self._here.allowed_modules,
            )
        except SettingsError as error:
            logger.exception("no raw dataset")
            raise SiteError(
                f"site {self._here.name}: no raw dataset; the site's log says more"
            ) from error

    def check_fingerprint(self, task: FingerprintTask, cases: int) -> None:
        """Raise ``SiteError`` if another fingerprint than the approved one is asked for.

        Parameters
        ----------
        task
            The task as it came.
        cases
            Training cases of this site: a federation has at least as many, and samples no more
            voxels of each than of those.
        """
        approved, site = self._approved(), self._here.name
        if task.min_cases != approved.min_cases:
            raise SiteError(f"site {site}: refused a fingerprint of other bins than approved")
        if task.verify_dataset_integrity != approved.verify_dataset_integrity:
            raise SiteError(
                f"site {site}: refused verify_dataset_integrity "
                f"{task.verify_dataset_integrity}, which was not approved"
            )
        if task.samples_per_case > samples_per_case(cases):
            raise SiteError(
                f"site {site}: refused {task.samples_per_case} samples per case; nnU-Net "
                f"takes at most {samples_per_case(cases)}"
            )

    def check_prepare(self, task: PrepareTask) -> None:
        """Raise ``SiteError`` if more would be changed at the site than was approved."""
        approved, site = self._approved(), self._here.name
        for configuration in task.configurations:
            if configuration not in approved.configurations:
                raise SiteError(
                    f"site {site}: refused to preprocess {configuration[:40]}, which was not "
                    "approved"
                )
        if task.replace_plans != approved.replace_plans:
            raise SiteError(f"site {site}: refused to replace plans, which was not approved")

    def _approved(self) -> PlanProposal:
        joined = self._joined.read()
        if joined is None:
            raise SiteError(f"site {self._here.name} has not agreed to be planned for")
        self._consent.require_still(joined[0])
        return joined[0]
