"""The app that a site runs, behind its guards."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

from flwr.app import Context, Message, MessageType
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.choosing import ChoiceOffer, ChoiceProposal, ScoreTask
from nnunetv2_federated.federation.evaluation import (
    EvaluationOffer,
    EvaluationProposal,
    MeasureTask,
    SiteEvaluation,
    WeightsReceipt,
    WeightsTask,
)
from nnunetv2_federated.federation.messages import (
    FingerprintTask,
    FullValidation,
    PrepareTask,
    TrainTask,
)
from nnunetv2_federated.federation.proposals import PlanProposal, Proposal
from nnunetv2_federated.federation.study import StudyEnd
from nnunetv2_federated.flower.choosing_app import add_choosing
from nnunetv2_federated.flower.client_app import make_client_app
from nnunetv2_federated.flower.deployment.site.choice_guard import ChoiceGuard
from nnunetv2_federated.flower.deployment.site.consent import Agreement, NotApprovedError
from nnunetv2_federated.flower.deployment.site.evaluation_guard import EvaluationGuard
from nnunetv2_federated.flower.deployment.site.guarded_site import GuardedSite
from nnunetv2_federated.flower.deployment.site.work_guard import (
    EVALUATE_FULLY,
    EVALUATE_SCORE,
    TRAIN_PERSONAL,
    WORK,
)
from nnunetv2_federated.flower.evaluation_app import add_evaluation
from nnunetv2_federated.flower.records import (
    CONFIG,
    only_array,
    pack_payload,
    reply,
    unpack_payload,
)

Say = Callable[[str], None]
_READER = "site"


def build_site_app(site: GuardedSite, say: Say, mods: Sequence[Mod] = ()) -> ClientApp:
    """Build the app that every site runs; only what was approved gets through to it.

    Parameters
    ----------
    site
        The site's guards.
    say
        Called with one line about each step.
    mods
        Modifiers of Flower around the guards; they see every question and its answer.
    """
    agree = _Agreeing(say)
    app = make_client_app(
        lambda _: site.membership.site(),
        lambda _: site.planning.raw_site(),
        [*mods, _guard_planning(site, agree, say), _guard_work(site, say)],
    )

    add_evaluation(app, lambda _: _Evaluating(site.evaluation, agree, say))
    add_choosing(app, lambda _: _Choosing(site.choice, agree, say))

    @app.query("join")
    def join(message: Message, context: Context) -> Message:
        proposal = Proposal.from_json(unpack_payload(message.content, _READER))
        del context
        agree(proposal, functools.partial(site.membership.join, proposal))
        if proposal.count > 1:
            say(f"the next training of it is {proposal.configuration}, fold {proposal.fold}")
        if proposal.study is not None:
            say(f"trial {proposal.trial} of at most {proposal.study.trials}")
        return reply(message, site.membership.site().describe().to_json())

    @app.query("ended")
    def ended(message: Message, context: Context) -> Message:
        end = StudyEnd.from_json(unpack_payload(message.content, _READER))
        del context
        receipt = site.membership.end_trials(end)
        over = "the study is finished" if end.finished else "the study goes on"
        say(f"{over}; trials that have ended: {len(end.trials)}")
        return reply(message, receipt.to_json())

    return app


class _Agreeing:
    """Joins what was approved; says once that somebody has to look at what was not."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._asked: set[str] = set()

    def __call__(self, agreement: Agreement, join: Callable[[], None]) -> None:
        what = f"{agreement.what} {agreement.approval()[:12]}"
        try:
            join()
        except NotApprovedError:
            if what not in self._asked:
                self._asked.add(what)
                self._say(f"asked to take part in {what}: look at it and approve it with --approve")
            raise
        self._say(f"takes part in {what}")


@dataclasses.dataclass(frozen=True)
class _Evaluating:
    """Evaluates what was approved, and says so at the site's own terminal."""

    guard: EvaluationGuard
    agree: _Agreeing
    say: Say

    def offer(self, proposal: EvaluationProposal) -> EvaluationOffer:
        offers: list[EvaluationOffer] = []
        self.agree(proposal, lambda: offers.append(self.guard.offer(proposal)))
        return offers[0]

    def receive(self, task: WeightsTask, vector: Vector) -> WeightsReceipt:
        return self.guard.receive(task, vector)

    def measure(self, task: MeasureTask) -> SiteEvaluation:
        self.say(f"evaluation {task.approval[:12]}")
        answer = self.guard.measure(task)
        self.say(f"evaluated {answer.cases} cases; means and variances leave this site")
        return answer


@dataclasses.dataclass(frozen=True)
class _Choosing:
    """Measures what was approved, and says so at the site's own terminal."""

    guard: ChoiceGuard
    agree: _Agreeing
    say: Say

    def offer(self, proposal: ChoiceProposal) -> ChoiceOffer:
        offers: list[ChoiceOffer] = []
        self.agree(proposal, lambda: offers.append(self.guard.offer(proposal)))
        return offers[0]

    def score(self, task: ScoreTask) -> FullValidation:
        answer = self.guard.score(task)
        what = " and ".join(task.configurations) + ("" if not task.removals else ", postprocessed")
        self.say(f"measured {what} on {answer.cases} cases; means leave this site")
        return answer


def _guard_planning(site: GuardedSite, agree: _Agreeing, say: Say) -> Mod:
    def guard(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        kind = message.metadata.message_type
        if kind == "query.survey":
            proposal = PlanProposal.from_json(unpack_payload(message.content, _READER))
            agree(proposal, functools.partial(site.planning.join, proposal))
        elif kind == "query.fingerprint":
            task = FingerprintTask.from_json(unpack_payload(message.content, _READER))
            site.planning.check_fingerprint(task, site.planning.raw_site().survey().cases)
            say("reads all images and masks for the fingerprint")
        elif kind == "query.prepare":
            plans = PrepareTask.from_json(unpack_payload(message.content, _READER))
            site.planning.check_prepare(plans)
            if not plans.check_only:
                say(f"preprocesses with the federation's plans, SHA-256 {plans.plans_hash[:12]}")
        return call_next(message, context)

    return guard


def _guard_work(site: GuardedSite, say: Say) -> Mod:
    def guard(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        kind = message.metadata.message_type
        if kind not in WORK:
            return call_next(message, context)
        task = TrainTask.from_json(unpack_payload(message.content, _READER))
        question, kept = site.work.admit(kind, task, only_array(message.content).data)
        if kept is not None:
            say(f"{_work(kind, task)}: the answer given before, again")
            return Message(kept, reply_to=message)
        say(_work(kind, task))
        seconds = site.work.seconds_left(task)
        if seconds != task.seconds:
            task = dataclasses.replace(task, seconds=seconds)
            message.content[CONFIG] = pack_payload(task.to_json())
        with site.work.working():
            answer = call_next(message, context)
        site.work.finish(question, answer.content)
        return answer

    return guard


def _work(kind: str, task: TrainTask) -> str:
    if kind == MessageType.TRAIN:
        return f"round {task.server_round + 1}, learning rate {task.lr:.5f}"
    if kind == EVALUATE_SCORE:
        return f"score after round {task.server_round}"
    if kind == TRAIN_PERSONAL:
        return "personal model, of the last round's"
    return "full validation" if kind == EVALUATE_FULLY else "validation of the last round's model"
