"""A site that does for a coordinator only what was approved, once, and within its limits."""

from __future__ import annotations

from collections.abc import Callable

from nnunetv2_federated.flower.deployment.site.choice_guard import ChoiceGuard
from nnunetv2_federated.flower.deployment.site.consent import (
    Agreement,
    Consent,
    Record,
    record_nothing,
)
from nnunetv2_federated.flower.deployment.site.evaluation_guard import EvaluationGuard
from nnunetv2_federated.flower.deployment.site.ledger import Ledger
from nnunetv2_federated.flower.deployment.site.local_site import LocalSite
from nnunetv2_federated.flower.deployment.site.membership import Membership
from nnunetv2_federated.flower.deployment.site.planning_guard import PlanningGuard
from nnunetv2_federated.flower.deployment.site.work_guard import WorkGuard, WorkMeter
from nnunetv2_federated.nnunet.privacy.site_privacy import Budget
from nnunetv2_federated.nnunet.training.site_pool import SitePool


class GuardedSite:
    """A site's guards, wired together.

    Parameters
    ----------
    here
        What the hospital offers.
    ask
        Called with what is not approved yet, returns whether to take part; ``None`` if nobody is
        there to ask.
    record
        Called with every decision, for the audit log: an event and its fields.
    """

    def __init__(
        self,
        here: LocalSite,
        *,
        ask: Callable[[Agreement], bool] | None = None,
        record: Record = record_nothing,
    ) -> None:
        self.here = here
        self.record = record
        self.consent = Consent(here.name, here.folder, ask, record)
        self.ledger = Ledger(here.folder)
        self.meter = WorkMeter(self.ledger)
        budget = Budget(here.limits.max_epsilon, self._record_charge)
        self.pool = SitePool(self.meter, budget, here.limits.max_gpu_gb)
        self.membership = Membership(here, self.consent, self.ledger, self.pool)
        self.work = WorkGuard(here, self.consent, self.ledger, self.membership, self.meter)
        self.planning = PlanningGuard(here, self.consent)
        self.evaluation = EvaluationGuard(here, self.consent, self.ledger, self.meter)
        self.choice = ChoiceGuard(here, self.consent, self.ledger, self.meter)

    def _record_charge(self, server_round: int, epsilon: float, delta: float) -> None:
        self.record("charged", round=server_round + 1, epsilon=epsilon, delta=delta)

    def rewind(self, run: str, server_round: int, how: str) -> None:
        """Let a server that was restored from a backup ask for a round again.

        Parameters
        ----------
        run
            Identifier of the run, or how it begins.
        server_round
            Number of the round, from 0.
        how
            Who decided, and how.

        Raises
        ------
        SettingsError
            If there is no such run, or the site does not keep its state of before that round.
        """
        self.membership.check_rewind(run, server_round)
        self.ledger.rewind(run, server_round)
        self.record("rewound", run=run, round=server_round + 1, how=how)

    def close(self) -> None:
        """Close the trainer, and let other commands into the result folder."""
        self.pool.close()
        self.membership.release()
