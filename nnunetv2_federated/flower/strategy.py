"""The server's side of a round: who trains, at which learning rate, and what is accepted."""

from __future__ import annotations

import heapq
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from nnunetv2_federated.federation.aggregation import RunningMean, Vector, is_finite
from nnunetv2_federated.federation.errors import RoundError, SettingsError, SiteError
from nnunetv2_federated.federation.messages import (
    VALIDATION_EPOCH,
    TrainReport,
    TrainTask,
)
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.federation.tasks import seconds_to_train
from nnunetv2_federated.federation.update_bound import UpdateBound
from nnunetv2_federated.flower.participants import Attendance
from nnunetv2_federated.flower.records import (
    ARRAYS,
    CONFIG,
    METRICS,
    NUM_EXAMPLES,
    num_bytes,
    pack_payload,
    pack_weights,
    unpack_weights,
)
from nnunetv2_federated.flower.replies import read_training
from nnunetv2_federated.flower.sampled_grid import SampledGrid


@dataclass
class Outcome:
    """What the strategy learned in one round."""

    server_round: int
    lr: float
    participants: list[str]
    started: float = field(default_factory=time.time)
    reports: list[TrainReport] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    updates: dict[str, dict[str, Any]] = field(default_factory=dict)
    """:meth:`.UpdateBound.record`."""
    bytes_down: int = 0
    bytes_up: int = 0
    aggregation_seconds: float = 0.0


@dataclass
class _Reply:
    """A site's checked reply, as long as it is needed."""

    site: str
    report: TrainReport
    vector: Vector
    weight: float
    message: Message
    num_bytes: int

    def forget(self) -> None:
        """Give the memory of the weights back, whoever still holds the reply."""
        self.vector = np.empty(0, np.float32)
        for record in self.message.content.values():
            record.clear()  # RecordDict's views are reference cycles and would keep it for a while


def sample_sites(names: list[str], count: int | None, seed: int, server_round: int) -> list[str]:
    """Choose the sites of a round; the same for the same seed and round, on any machine.

    Parameters
    ----------
    names
        All sites.
    count
        How many to draw, without replacement; ``None`` for all.
    seed, server_round
        Each round draws from its own generator, so there is no sampler state to save.
    """
    ordered = sorted(names)
    if count is None or count >= len(ordered):
        return ordered
    generator = np.random.Generator(np.random.PCG64([seed, server_round]))
    return sorted(ordered[i] for i in generator.permutation(len(ordered))[:count])


def validation_share(iterations: int | None, cases: Mapping[str, int]) -> dict[str, int]:
    """Spread one epoch of validation iterations over sites by their validation cases.

    ``None`` iterations: trainers that go through all their cases; each site does.
    """
    if iterations is None:
        return {site: VALIDATION_EPOCH if n else 0 for site, n in cases.items()}
    total = sum(cases.values())
    return {site: -(-iterations * n // total) if n else 0 for site, n in cases.items()}


class PolyLRStrategy(Strategy):
    """Own the learning rate by round, and delegate the rest to any Flower strategy.

    Parameters
    ----------
    inner
        A strategy of Flower. It configures a round for the sampled sites and aggregates.
    settings
        Of the federation.
    lrs
        Learning rate of each round.
    attendance
        Which sites there are, and which of them are connected.
    streaming
        Whether ``inner`` needs only the weighted mean of the replies. Then each is added to a
        running mean as it arrives and forgotten.
    first_round
        Rounds already done, when a run is resumed.
    bound
        Which updates are too long; ``None`` for the settings' own, at the start of a run.
    """

    def __init__(
        self,
        inner: Strategy,
        settings: FederationSettings,
        lrs: Sequence[float],
        attendance: Attendance,
        *,
        streaming: bool = False,
        first_round: int = 0,
        bound: UpdateBound | None = None,
    ) -> None:
        self.inner = inner
        self.settings = settings
        self.lrs = lrs
        self.outcome: Outcome | None = None
        self._attendance = attendance
        self._sent: Vector = np.empty(0, np.float32)
        self._streaming = streaming
        self._first_round = first_round
        self._bound = bound or UpdateBound.of(settings, len(attendance.names))

    def summary(self) -> None:
        """Log the inner strategy's settings."""
        self.inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Write one message per sampled site, in site order, each with its own records."""
        del grid  # the sites are known since they described themselves
        done = self._first_round + server_round - 1
        settings = self.settings
        names = sample_sites(self._attendance.names, settings.sites_per_round, settings.seed, done)
        lr = self.lrs[done]
        self.outcome = Outcome(done, lr, names)
        here = self._attendance.present(names, self._needed(len(names)))
        self.outcome.failed = {name: "not connected" for name in names if name not in here}
        names = [name for name in names if name in here]
        self._require_sites(self.outcome)
        nodes = [here[name] for name in names]
        needed = getattr(self.inner, "min_available_nodes", 0)
        if needed > len(nodes):
            raise SettingsError(
                f"{type(self.inner).__name__} waits for {needed} sites, a round has {len(nodes)}."
            )
        configured = list(
            self.inner.configure_train(
                done + 1, arrays, ConfigRecord(dict(config)), SampledGrid(nodes)
            )
        )
        content = configured[0].content
        weights = next(iter(content.array_records.values()))
        self._sent = unpack_weights(content)
        if settings.transport_dtype != "float32":
            weights = pack_weights(self._sent, settings.transport_dtype)
        inner_config = next(iter(content.config_records.values()))
        validations = self._validation_iterations(names, done)
        messages = []
        for name in names:
            task = TrainTask(
                server_round=done,
                lr=lr,
                local_epochs=settings.local_epochs,
                validate_received=validations[name],
                proximal_mu=float(str(inner_config.get("proximal-mu", 0.0))),
                seconds=seconds_to_train(settings),
                run_id=self._attendance.run_id,
            )
            record = RecordDict({ARRAYS: weights, CONFIG: pack_payload(task.to_json())})
            self.outcome.bytes_down += num_bytes(record)
            messages.append(Message(record, here[name], MessageType.TRAIN))
        return messages

    def _validation_iterations(self, names: list[str], server_round: int) -> dict[str, int]:
        if not self.settings.global_validation or server_round == 0:
            return dict.fromkeys(names, 0)
        return self.validation_share(names)

    def validation_share(self, names: Iterable[str]) -> dict[str, int]:
        """Spread one epoch of validation iterations over these sites."""
        known = {s.site: s.validation_cases for s in self._attendance.sites.values()}
        cases = {name: known[name] for name in names}
        return validation_share(self.settings.val_iterations, cases)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check every reply, refuse what is unusable, and aggregate the rest in site order.

        Raises
        ------
        RoundError
            If fewer sites than a round needs sent something usable.
        """
        outcome = self._outcome()
        started = time.perf_counter()
        mean = RunningMean()
        accepted: list[Message] = []
        for reply in self._judged(self._awaited(replies)):
            outcome.reports.append(reply.report)
            outcome.bytes_up += reply.num_bytes
            vector, message = reply.vector, reply.message
            reply.forget()
            if self._streaming:
                mean.add(vector, reply.weight)
                accepted[:] = [message]
            else:
                message.content = _flower_reply(vector, reply.weight)
                accepted.append(message)
            del vector
        self._require_replies(outcome)
        if self._streaming:
            accepted[0].content = _flower_reply(mean.result(), mean.total_weight)
        del server_round
        arrays, metrics = self.inner.aggregate_train(outcome.server_round + 1, accepted)
        if arrays is None:
            raise RoundError(f"{type(self.inner).__name__} aggregated nothing")
        vector = next(iter(arrays.values())).numpy().astype(np.float32, copy=False)
        if not is_finite(vector):
            raise RoundError(
                f"round {outcome.server_round}: {type(self.inner).__name__} gave weights that are "
                "not finite; check --strategy-option."
            )
        result = pack_weights(vector)
        outcome.aggregation_seconds += time.perf_counter() - started
        return result, metrics

    def _awaited(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Do not count the time until the next reply is there as aggregation."""
        outcome = self._outcome()
        started = time.perf_counter()
        for message in replies:
            outcome.aggregation_seconds -= time.perf_counter() - started
            yield message
            started = time.perf_counter()
        outcome.aggregation_seconds -= time.perf_counter() - started

    def _judged(self, replies: Iterable[Message]) -> Iterator[_Reply]:
        """Pass on, in site order, what is usable and not too long."""
        outcome = self._outcome()
        for reply in self._bound.judge(self._opened(replies), self._sent):
            reason = self._bound.refusal(reply.site)
            if reason is None:
                yield reply
            else:
                outcome.failed[reply.site] = reason
                reply.forget()
        outcome.updates = self._bound.record()

    def _opened(self, replies: Iterable[Message]) -> Iterator[_Reply]:
        outcome = self._outcome()
        answered: set[str] = set()
        for message in self._in_site_order(replies):
            name = self._name(message)
            try:
                reply = self._reply(name, message, answered)
            except SiteError as error:
                outcome.failed[name] = str(error)
                continue
            answered.add(name)
            yield reply

    def _reply(self, name: str, message: Message, answered: Collection[str]) -> _Reply:
        described = self._attendance.sites.get(message.metadata.src_node_id)
        if described is None or name in answered:
            raise SiteError("was not asked, or answered twice")
        report, vector = read_training(
            message,
            described,
            self._sent,
            self.settings.transport_dtype,
            self._attendance.classes,
        )
        cases = report.training_cases if self.settings.weighting == "cases" else 1
        size = num_bytes(message.content)
        return _Reply(name, report, vector, cases * report.completed, message, size)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask for nothing: the next train message brings the global model's validation."""
        del server_round, arrays, config, grid
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return nothing; see :meth:`configure_evaluate`."""
        del server_round
        list(replies)
        return None

    def _outcome(self) -> Outcome:
        if self.outcome is None:
            raise RuntimeError("configure_train comes before aggregate_train")
        return self.outcome

    def _name(self, message: Message) -> str:
        node = message.metadata.src_node_id
        site = self._attendance.sites.get(node)
        return site.site if site is not None else f"node {node}"

    def _in_site_order(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Pass replies on in site order, holding back only those that came too early."""
        outcome = self._outcome()
        expected = [name for name in outcome.participants if name not in outcome.failed]
        early: list[tuple[str, int, Message]] = []
        for count, message in enumerate(replies):
            heapq.heappush(early, (self._name(message), count, message))
            while early and expected and early[0][0] == expected[0]:
                expected.pop(0)
                yield heapq.heappop(early)[2]
        while early:
            yield heapq.heappop(early)[2]

    def _require_sites(self, outcome: Outcome) -> None:
        count = len(outcome.participants) - len(outcome.failed)
        self._require(outcome, count, "are connected")

    def _require_replies(self, outcome: Outcome) -> None:
        answered = {report.site for report in outcome.reports} | outcome.failed.keys()
        outcome.failed |= {n: "no reply" for n in outcome.participants if n not in answered}
        self._require(outcome, len(outcome.reports), "sent usable weights")

    def _needed(self, count: int) -> int:
        return self.settings.needed(count, remote=self._attendance.remote)

    def _require(self, outcome: Outcome, count: int, what: str) -> None:
        needed = self._needed(len(outcome.participants))
        if count >= needed:
            return
        why = "; ".join(f"{name}: {reason}" for name, reason in sorted(outcome.failed.items()))
        raise RoundError(
            f"round {outcome.server_round}: {count} of {len(outcome.participants)} sites {what}, "
            f"{needed} are required (--min-replies). {why}"
        )


def _flower_reply(vector: Vector, weight: float) -> RecordDict:
    """Build a reply in the form Flower's strategies check for."""
    return RecordDict({ARRAYS: pack_weights(vector), METRICS: MetricRecord({NUM_EXAMPLES: weight})})
