"""What a site computes for a federation: what follows from the approval, once, within limits."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, replace

from flwr.app import MessageType, RecordDict

from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.federation.messages import TrainTask
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.study import StudyTerms
from nnunetv2_federated.federation.tasks import (
    check_evaluation,
    check_full_validation,
    check_personal,
    check_round,
    check_score,
)
from nnunetv2_federated.flower.deployment.site.consent import Consent
from nnunetv2_federated.flower.deployment.site.ledger import (
    EVALUATION,
    PERSONAL,
    ROUND,
    SCORE,
    VALIDATION,
    Ledger,
    Question,
)
from nnunetv2_federated.flower.deployment.site.local_site import LocalSite
from nnunetv2_federated.flower.deployment.site.membership import Membership
from nnunetv2_federated.nnunet.training.result_folder import drop_previous
from nnunetv2_federated.nnunet.training.site_pool import WorkingSite

EVALUATE_FULLY = f"{MessageType.EVALUATE}.fully"
TRAIN_PERSONAL = f"{MessageType.TRAIN}.personal"
EVALUATE_SCORE = f"{MessageType.EVALUATE}.score"
WORK = (MessageType.TRAIN, MessageType.EVALUATE, EVALUATE_FULLY, TRAIN_PERSONAL, EVALUATE_SCORE)
"""Types of messages that cost computing time and tell something of the site's cases."""

_KINDS: dict[str, str] = {
    MessageType.EVALUATE: EVALUATION,
    EVALUATE_FULLY: VALIDATION,
    TRAIN_PERSONAL: PERSONAL,
    EVALUATE_SCORE: SCORE,
}
_LOOK_SECONDS = 1.0
"""How often work looks whether it may go on."""
_SAVE_SECONDS = 60.0
"""How often the time that work takes is written down, for a site that is killed."""
_TO_TRAIN = 0.8
"""Share of the hours that are left; the rest is for validation."""


class WorkMeter(Observer):
    """Counts the time of work, and looks between iterations whether it may go on.

    Parameters
    ----------
    ledger
        Where the time is written down.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.running = False
        self._ledger = ledger
        self._accounts: Collection[str] = ()
        self._check: Callable[[float], None] | None = None
        self._counted = 0.0
        """Until when the time is written down (``time.monotonic``)."""
        self._looked = 0.0

    @contextlib.contextmanager
    def measuring(
        self, accounts: Collection[str], check: Callable[[float], None]
    ) -> Iterator[None]:
        """Count the time within.

        Parameters
        ----------
        accounts
            Full name of the dataset that the time is spent on, and the study if it is one's.
        check
            Called now and then with the hours that are not written down yet; raises ``SiteError``
            if work may not go on.
        """
        self._accounts, self._check = accounts, check
        self._counted = self._looked = time.monotonic()
        self.running = True
        try:
            yield
        finally:
            self.running = False
            self._count()

    def iteration_done(self) -> None:
        """Look whether work may go on.

        Raises
        ------
        SiteError
            If the approval was withdrawn or the hours are spent.
        """
        now = time.monotonic()
        if not self.running or now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        if now - self._counted > _SAVE_SECONDS:
            self._count()
        if self._check is not None:
            self._check((time.monotonic() - self._counted) / 3600)

    def _count(self) -> None:
        now = time.monotonic()
        self._ledger.spend(self._accounts, hours=(now - self._counted) / 3600)
        self._counted = now


class WorkGuard:
    """Lets a round, the evaluation, the full validation and the personal model through, each once.

    Parameters
    ----------
    here
        What the hospital offers.
    consent
        What its engineer has approved.
    ledger
        What was done and spent.
    membership
        The federation that was joined last.
    meter
        Counts the time of work.
    """

    def __init__(
        self,
        here: LocalSite,
        consent: Consent,
        ledger: Ledger,
        membership: Membership,
        meter: WorkMeter,
    ) -> None:
        self._here = here
        self._consent = consent
        self._ledger = ledger
        self._membership = membership
        self._meter = meter

    def admit(
        self, kind: str, task: TrainTask, weights: bytes
    ) -> tuple[Question, RecordDict | None]:
        """Allow a piece of work that follows from what was approved, once.

        Parameters
        ----------
        kind
            Type of the message, one of :data:`WORK`.
        task
            The task as it came.
        weights
            The weights as they came.

        Returns
        -------
        tuple
            The question, and the answer if it was answered before.

        Raises
        ------
        SiteError
            If it is not what was approved, was answered to another question, or nothing is left to
            give.
        """
        proposal, _ = self._membership.current()
        if task.run_id != proposal.run_id:
            raise SiteError(
                f"site {self._here.name}: refused a task of another run than it joined last"
            )
        site = self._membership.site()
        with self._naming():
            _check(kind, task, site, self._ledger.rounds_done(task.run_id))
        question = _question(kind, task, weights)
        study, name = proposal.study, self._here.name
        if study is not None:
            self._check_left(study, question, len(weights))
        kept = self._ledger.begin(
            *(question, site.run.dataset, self._here.limits, name),
            account=None if study is None else study.account,
        )
        if kept is not None and study is not None:  # it leaves once more
            self._ledger.spend([study.account], size=_size(kept))
        return question, kept

    def finish(self, question: Question, answer: RecordDict) -> None:
        """Keep the answer to a piece of work; an earlier run's state is not needed any more."""
        proposal, folder = self._membership.current()
        if proposal.study is not None:
            self._ledger.spend([proposal.study.account], size=_size(answer))
        self._ledger.finish(question, answer)
        if question.is_round:
            drop_previous(folder)

    def seconds_left(self, task: TrainTask) -> float | None:
        """Return how long to train in a round: less than asked if the site's hours end before."""
        study = self._membership.current()[0].study
        limits = [(self._here.limits.max_hours, self._here.dataset_name())]
        limits += [(study.hours, study.account)] if study is not None else []
        left = [
            max(1.0, (most - self._ledger.spent(account).hours) * 3600 * _TO_TRAIN)
            for most, account in limits
            if most is not None
        ]
        asked = [] if task.seconds is None else [task.seconds]
        return min([*asked, *left], default=None)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Add the time within to what the site has given; stop when nothing is left to give."""
        study = self._membership.current()[0].study
        accounts = [self._here.dataset_name(), *([study.account] if study else [])]
        with self._meter.measuring(accounts, self.check_going_on):
            yield

    def check_going_on(self, hours: float) -> None:
        """Raise ``SiteError`` if work that is being done may not go on.

        Parameters
        ----------
        hours
            Hours of this work that are not written down yet.
        """
        proposal, _ = self._membership.current()
        self._consent.require_still(proposal)
        spent = self._ledger.spent(self._here.dataset_name())
        self._here.limits.check_hours(replace(spent, hours=spent.hours + hours), self._here.name)
        if (study := proposal.study) is not None:
            with self._naming():
                study.check_spent(self._ledger.spent(study.account).hours + hours, 0.0)

    def _check_left(self, study: StudyTerms, question: Question, size: int) -> None:
        """Refuse what passes what was approved of a study; count the bytes that came."""
        spent = self._ledger.spent(study.account)
        new = self._ledger.is_new(question)
        with self._naming():
            study.check_spent(spent.hours, spent.gigabytes)
            if new and question.is_round:
                study.check_count("rounds", spent.rounds)
            elif new:
                study.check_count("evaluations", spent.evaluations)
        self._ledger.spend([study.account], size=size)

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        """Say in a refusal within whose it is."""
        try:
            yield
        except SiteError as error:
            raise SiteError(f"site {self._here.name}: {error}") from error


def _check(kind: str, task: TrainTask, site: WorkingSite, rounds_done: int) -> None:
    settings, iterations = site.run.settings, site.val_iterations
    if kind == MessageType.TRAIN:
        check_round(task, settings, site.lrs, iterations)
    elif kind == MessageType.EVALUATE:
        check_evaluation(task, settings, iterations)
    elif kind == EVALUATE_SCORE:
        check_score(task, site.run, iterations)
    elif site.run.study is not None:
        raise SiteError("refused what comes after the rounds: a trial of a study is scored only")
    elif kind == TRAIN_PERSONAL:
        check_personal(task, settings, rounds_done)
    else:
        check_full_validation(task, settings)


def _question(kind: str, task: TrainTask, weights: bytes) -> Question:
    """Describe a piece of work; how much is validated may differ when it is asked again."""
    same = asdict(replace(task, validate_received=0))
    digest = hashlib.sha256(json.dumps([kind, same], sort_keys=True).encode())
    digest.update(weights)
    step = task.server_round if kind in (MessageType.TRAIN, EVALUATE_SCORE) else 0
    return Question(task.run_id, _KINDS.get(kind, ROUND), step, digest.hexdigest())


def _size(answer: RecordDict) -> int:
    """Return the bytes of the weights in an answer."""
    arrays = (a for record in answer.array_records.values() for a in record.values())
    return sum(len(array.data) for array in arrays)
