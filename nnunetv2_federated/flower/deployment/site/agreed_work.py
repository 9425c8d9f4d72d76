"""Work that a site does once for a coordinator, beside a training: what it agreed to last."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Generic

from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.flower.deployment.site.consent import Consent
from nnunetv2_federated.flower.deployment.site.ledger import Ledger
from nnunetv2_federated.flower.deployment.site.local_site import LocalSite
from nnunetv2_federated.flower.deployment.site.proposal_file import Kind, ProposalFile
from nnunetv2_federated.flower.deployment.site.work_guard import WorkMeter


class AgreedWork(Generic[Kind]):
    """The proposal of a kind that was agreed to last, and work on it within the site's limits.

    Parameters
    ----------
    here
        What the hospital offers.
    consent
        What its engineer has approved.
    ledger
        What the site has given.
    meter
        Counts the time of work.
    file
        File that keeps the proposal, in the site's private folder.
    kind
        Type of the proposal.
    """

    def __init__(
        self,
        here: LocalSite,
        consent: Consent,
        ledger: Ledger,
        meter: WorkMeter,
        *,
        file: str,
        kind: type[Kind],
    ) -> None:
        self.here = here
        self.consent = consent
        self.ledger = ledger
        self.meter = meter
        self._what = kind.what
        self._file: ProposalFile[Kind] = ProposalFile(here.folder / file, kind)

    def check_left(self) -> None:
        """Raise ``SiteError`` if not even one more evaluation may be given."""
        spent = self.ledger.spent(self.here.dataset_name())
        self.here.limits.check_step(spent, self.here.name, is_round=False)

    def count(self) -> None:
        """Count one evaluation; raise ``SiteError`` if nothing is left to give."""
        here = self.here
        self.ledger.count_evaluation(here.dataset_name(), here.limits, here.name)

    def last(self) -> Kind | None:
        """Return the proposal that was agreed to last."""
        joined = self._file.read()
        return None if joined is None else joined[0]

    def agree(self, proposal: Kind) -> None:
        """Keep a proposal, with the dataset that the site serves now."""
        self._file.write(proposal, dataset=self.here.dataset_name())

    def approved(self, approval: str) -> Kind:
        """Return the proposal of this hash.

        Raises
        ------
        SiteError
            If it is not what was agreed to last, or with another dataset, or its approval was
            withdrawn.
        """
        joined, site = self._file.read(), self.here.name
        if joined is None or joined[0].approval() != approval:
            raise SiteError(f"site {site} has not agreed to the {self._what} {approval[:12]}")
        proposal, notes = joined
        if notes.get("dataset") != self.here.dataset_name():
            raise SiteError(
                f"site {site} serves another dataset than the one it agreed with; it has to be "
                "asked again"
            )
        self.consent.require_still(proposal)
        return proposal

    @contextlib.contextmanager
    def working(self, proposal: Kind) -> Iterator[None]:
        """Count the time within; whenever a case is done, look whether work may go on.

        Raises
        ------
        SiteError
            If the hours are spent, or the approval is withdrawn meanwhile.
        """
        dataset, site, limits = self.here.dataset_name(), self.here.name, self.here.limits
        limits.check_hours(self.ledger.spent(dataset), site)

        def check(hours: float) -> None:
            self.consent.require_still(proposal)
            spent = self.ledger.spent(dataset)
            limits.check_hours(replace(spent, hours=spent.hours + hours), site)

        with self.meter.measuring([dataset], check):
            yield
