"""The server's side of a round: the learning rate it sends, and the model it makes of replies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

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
from nnunetv2_federated.federation.errors import RoundError, SettingsError
from nnunetv2_federated.federation.history import UpdateRecord
from nnunetv2_federated.federation.messages import TrainReport, TrainTask
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.federation.tasks import seconds_to_train
from nnunetv2_federated.federation.update_bound import UpdateBound
from nnunetv2_federated.flower.participants import Participants
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
from nnunetv2_federated.flower.replies import Quorum, Reply, ReplyFormat, RoundReplies, Stopwatch
from nnunetv2_federated.flower.sampling import SampledGrid, sample_sites, validation_share


@dataclass(frozen=True)
class RoundResult:
    """What a round brought, once its replies are aggregated."""

    server_round: int
    """Number of the round, from 0."""
    lr: float
    started: float
    """When the round began, in seconds since the epoch."""
    participants: Sequence[str]
    """Names of the sites that were sampled, sorted."""
    weights: Vector
    """The new global model: float32, shape (parameters,)."""
    reports: Sequence[TrainReport]
    """Reports of the sites whose weights were aggregated, in site order."""
    failed: Mapping[str, str]
    """Reason for each site that was sampled and not aggregated, by name."""
    updates: Mapping[str, UpdateRecord]
    """Length and direction of each site's update, by name."""
    bytes_down: int
    bytes_up: int
    aggregation_seconds: float


@dataclass(frozen=True)
class _OpenRound:
    """A round whose messages are written and whose replies are awaited."""

    lr: float
    started: float
    quorum: Quorum
    here: Mapping[str, int]
    """Node of each site that is asked, by name, in site order."""
    failed: dict[str, str]
    sent: Vector
    bytes_down: int

    @property
    def number(self) -> int:
        return self.quorum.server_round


def ignore(result: RoundResult) -> None:
    """Do nothing with the result of a round."""
    del result


class PolyLRStrategy(Strategy):
    """Own the learning rate by round, and delegate the rest to any Flower strategy.

    Parameters
    ----------
    inner
        A strategy of Flower. It configures a round for the sampled sites and aggregates.
    settings
        Settings of the federation.
    lrs
        Learning rate of each round.
    participants
        Which sites there are, and which of them are connected.
    streaming
        Whether ``inner`` needs only the weighted mean of the replies. Then each is added to a
        running mean as it arrives and forgotten.
    first_round
        Number of rounds already done, when a run is resumed.
    bound
        Decides which updates are too long; ``None`` for the settings' own, at the start of a run.
    on_result
        Called with the result of each round.
    """

    def __init__(
        self,
        inner: Strategy,
        settings: FederationSettings,
        lrs: Sequence[float],
        participants: Participants,
        *,
        streaming: bool = False,
        first_round: int = 0,
        bound: UpdateBound | None = None,
        on_result: Callable[[RoundResult], None] = ignore,
    ) -> None:
        self.inner = inner
        self.settings = settings
        self.lrs = lrs
        self._participants = participants
        self._streaming = streaming
        self._first_round = first_round
        self._bound = bound or UpdateBound.of(settings, len(participants.names))
        self._on_result = on_result
        self._open: _OpenRound | None = None

    def summary(self) -> None:
        """Log the inner strategy's settings."""
        self.inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Write one message per sampled site, in site order, each with its own records.

        Raises
        ------
        RoundError
            If fewer sites than a round needs are connected.
        SettingsError
            If the inner strategy waits for more sites than are connected.
        """
        del grid  # the sites are known since they described themselves
        opened = self._gather(self._first_round + server_round - 1)
        content = self._configure_inner(opened, arrays, config)
        weights = next(iter(content.array_records.values()))
        opened = replace(opened, sent=unpack_weights(content))
        if self.settings.transport_dtype != "float32":
            weights = pack_weights(opened.sent, self.settings.transport_dtype)
        inner_config = next(iter(content.config_records.values()))
        tasks = self._tasks(opened, float(str(inner_config.get("proximal-mu", 0.0))))
        records = {
            name: RecordDict({ARRAYS: weights, CONFIG: pack_payload(task.to_json())})
            for name, task in tasks.items()
        }
        self._open = replace(opened, bytes_down=sum(map(num_bytes, records.values())))
        return [
            Message(record, opened.here[name], MessageType.TRAIN)
            for name, record in records.items()
        ]

    def _gather(self, done: int) -> _OpenRound:
        """Open a round with those of its sites that are connected."""
        settings, started = self.settings, time.time()
        names = sample_sites(
            self._participants.names, settings.sites_per_round, settings.seed, done
        )
        needed = settings.needed(len(names), remote=self._participants.remote)
        here = self._participants.present(names, needed)
        failed = {name: "not connected" for name in names if name not in here}
        quorum = Quorum(done, names, needed)
        quorum.require(len(names) - len(failed), "are connected", failed)
        nodes = {name: here[name] for name in names if name in here}
        return _OpenRound(
            self.lrs[done], started, quorum, nodes, failed, np.empty(0, np.float32), 0
        )

    def _configure_inner(
        self, opened: _OpenRound, arrays: ArrayRecord, config: ConfigRecord
    ) -> RecordDict:
        """Return the content of a train message as the inner strategy writes it."""
        nodes = list(opened.here.values())
        needed = getattr(self.inner, "min_available_nodes", 0)
        if needed > len(nodes):  # Flower would wait for them without end
            raise SettingsError(
                f"{type(self.inner).__name__} waits for {needed} sites, a round has {len(nodes)}."
            )
        configured = self.inner.configure_train(
            opened.number + 1, arrays, ConfigRecord(dict(config)), SampledGrid(nodes)
        )
        return list(configured)[0].content  # noqa: RUF015  # it may be a generator that ends late

    def _tasks(self, opened: _OpenRound, proximal_mu: float) -> dict[str, TrainTask]:
        validations = dict.fromkeys(opened.here, 0)
        if self.settings.validates_received and opened.number > 0:
            validations = self.validation_share(opened.here)
        return {
            name: TrainTask(
                server_round=opened.number,
                lr=opened.lr,
                local_epochs=self.settings.local_epochs,
                validate_received=validations[name],
                proximal_mu=proximal_mu,
                seconds=seconds_to_train(self.settings),
                run_id=self._participants.run_id,
            )
            for name in opened.here
        }

    def validation_share(self, names: Iterable[str]) -> dict[str, int]:
        """Spread one epoch of validation iterations over these sites."""
        known = {s.site: s.validation_cases for s in self._participants.sites.values()}
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
        del server_round  # counted from the start of this process
        opened, self._open = self._open, None
        if opened is None:
            raise RuntimeError("configure_train comes before aggregate_train")
        watch = Stopwatch()
        answers = self._replies(opened)
        taken = _Taken(streaming=self._streaming)
        for reply in answers.usable(watch.not_counting(replies)):
            taken.add(reply)
            del reply  # the next site trains now: nothing may hold the weights
        self._require_replies(opened, taken, answers.failed)
        arrays, metrics = self._aggregate_inner(opened, taken.messages())
        result = RoundResult(
            server_round=opened.number,
            lr=opened.lr,
            started=opened.started,
            participants=opened.quorum.participants,
            weights=unpack_weights(RecordDict({ARRAYS: arrays})),
            reports=taken.reports,
            failed=answers.failed,
            updates=self._bound.record(),
            bytes_down=opened.bytes_down,
            bytes_up=taken.num_bytes,
            aggregation_seconds=watch.seconds(),
        )
        self._on_result(result)
        return arrays, metrics

    def _replies(self, opened: _OpenRound) -> RoundReplies:
        settings, classes = self.settings, self._participants.classes
        by_cases = settings.weighting == "cases"
        form = ReplyFormat(opened.sent, settings.transport_dtype, classes, by_cases)
        sites = self._participants.sites
        return RoundReplies(sites, list(opened.here), form, self._bound, dict(opened.failed))

    @staticmethod
    def _require_replies(opened: _OpenRound, taken: _Taken, failed: dict[str, str]) -> None:
        answered = {report.site for report in taken.reports} | failed.keys()
        silent = (name for name in opened.quorum.participants if name not in answered)
        failed |= dict.fromkeys(silent, "no reply")
        opened.quorum.require(len(taken.reports), "sent usable weights", failed)

    def _aggregate_inner(
        self, opened: _OpenRound, messages: list[Message]
    ) -> tuple[ArrayRecord, MetricRecord | None]:
        kind = type(self.inner).__name__
        arrays, metrics = self.inner.aggregate_train(opened.number + 1, messages)
        if arrays is None:
            raise RoundError(f"{kind} aggregated nothing")
        vector = next(iter(arrays.values())).numpy().astype(np.float32, copy=False)
        if not is_finite(vector):
            raise RoundError(
                f"round {opened.number}: {kind} gave weights that are not finite; check "
                "--strategy-option."
            )
        return pack_weights(vector), metrics

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


class _Taken:
    """Replies that were taken: as a running mean where that is all the strategy needs."""

    def __init__(self, *, streaming: bool) -> None:
        self.reports: list[TrainReport] = []
        self.num_bytes = 0
        self._mean = RunningMean() if streaming else None
        self._messages: list[Message] = []

    def add(self, reply: Reply) -> None:
        """Take one more reply; its own memory is released."""
        self.reports.append(reply.report)
        self.num_bytes += reply.num_bytes
        vector, message = reply.vector, reply.message
        reply.forget()
        if self._mean is not None:
            self._mean.add(vector, reply.weight)
            self._messages = [message]
        else:
            message.content = _flower_reply(vector, reply.weight)
            self._messages.append(message)

    def messages(self) -> list[Message]:
        """Return what the inner strategy aggregates: all replies, or one that is their mean."""
        if self._mean is not None:
            content = _flower_reply(self._mean.result(), self._mean.total_weight)
            self._messages[0].content = content
        return self._messages


def _flower_reply(vector: Vector, weight: float) -> RecordDict:
    """Build a reply in the form Flower's strategies check for."""
    return RecordDict({ARRAYS: pack_weights(vector), METRICS: MetricRecord({NUM_EXAMPLES: weight})})
