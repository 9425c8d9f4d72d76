"""What sites answer to a round: read and checked, in site order, and how many are enough."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.errors import RoundError, SiteError
from nnunetv2_federated.federation.messages import (
    PrivacyTerms,
    SiteDescription,
    TrainReport,
    Validation,
)
from nnunetv2_federated.federation.text import both_ends
from nnunetv2_federated.federation.update_bound import UpdateBound
from nnunetv2_federated.flower.records import num_bytes, reading, unpack_payload, unpack_reply


@dataclass
class Reply:
    """A site's checked reply, as long as its weights are needed."""

    site: str
    report: TrainReport
    vector: Vector
    """Trained weights: finite, float32, shape (parameters,)."""
    weight: float
    """Weight of the vector in the mean."""
    message: Message
    num_bytes: int

    def forget(self) -> None:
        """Release the memory of the weights, whoever still holds the reply."""
        self.vector = np.empty(0, np.float32)
        for record in self.message.content.values():
            record.clear()  # RecordDict's views are reference cycles and would keep it for a while


@dataclass(frozen=True)
class ReplyFormat:
    """What every reply of a round is read against.

    Parameters
    ----------
    sent
        Weights that the sites were sent: float32, shape (parameters,).
    dtype
        Type of the weights on their way, one of ``settings.TRANSPORT_DTYPES``.
    classes
        Foreground classes or regions that a validation counts voxels of; ``None`` if unknown.
    by_cases
        Whether a site's weights count by its training cases, or each site's the same.
    """

    sent: Vector
    dtype: str
    classes: int | None
    by_cases: bool

    def read(self, message: Message, site: SiteDescription) -> Reply:
        """Read a site's answer to a train message; whatever is in it, nothing else comes out.

        Parameters
        ----------
        message
            The answer as it came.
        site
            Description that the site gave of itself when it joined.

        Raises
        ------
        SiteError
            If the site failed or a part of its answer cannot be used; says why, in one line.
        """
        with reading("its answer"):
            if message.has_error():
                raise SiteError(both_ends(message.error.reason or "failed without a reason"))
            report = TrainReport.from_json(unpack_payload(message.content))
            if report.site != site.site:
                raise SiteError(f"answered as {report.site}")
            if report.training_cases != site.training_cases:
                raise SiteError(
                    f"trained on {report.training_cases} cases, but described "
                    f"{site.training_cases} when it joined"
                )
            check_private(report, site.privacy)
            for validation in (report.validation, report.received):
                check_validation(validation, self.classes)
            vector = unpack_reply(message.content, self.sent, self.dtype)
        cases = report.training_cases if self.by_cases else 1
        weight = cases * report.completed
        return Reply(site.site, report, vector, weight, message, num_bytes(message.content))


def check_private(report: TrainReport, terms: PrivacyTerms | None) -> None:
    """Raise ``SiteError`` if a report tells more, or less, than the site's promise allows."""
    if report.private and terms is None:
        raise SiteError("sent no training loss, but described no differential privacy")
    if terms is None:
        return
    if not report.private:
        raise SiteError("sent a training loss, which its differential privacy does not allow")
    told = (report.validation, report.received)
    if terms.told_of_validation == "withhold" and any(v and v.iterations for v in told):
        raise SiteError("told of validation cases, which its differential privacy withholds")


def check_validation(validation: Validation | None, classes: int | None) -> None:
    """Raise ``SiteError`` unless a validation has a count for each class, or none was made."""
    if validation is None or classes is None or validation.iterations == 0:
        return
    if len(validation.tp) != classes:
        raise SiteError(f"counted voxels of {len(validation.tp)} classes, there are {classes}")


@dataclass
class RoundReplies:
    """Replies of one round, from messages in any order to usable ones in site order.

    Parameters
    ----------
    sites
        Descriptions of the sites, by node.
    asked
        Names of the sites that were sent a message, sorted.
    form
        What each reply is read against.
    bound
        Decides which updates are too long.
    """

    sites: Mapping[int, SiteDescription]
    asked: Sequence[str]
    form: ReplyFormat
    bound: UpdateBound
    failed: dict[str, str] = field(default_factory=dict)
    """Reason for each site whose reply is not used, by name."""

    def usable(self, messages: Iterable[Message]) -> Iterator[Reply]:
        """Yield what can be aggregated, in site order; :attr:`failed` says why others are not."""
        for reply in self.bound.apply(self._read(messages), self.form.sent):
            reason = self.bound.refusal(reply.site)
            if reason is None:
                yield reply
            else:
                self.failed[reply.site] = reason
                reply.forget()

    def _read(self, messages: Iterable[Message]) -> Iterator[Reply]:
        answered: set[str] = set()
        for message in in_site_order(messages, self._name, self.asked):
            name = self._name(message)
            site = self.sites.get(message.metadata.src_node_id)
            if site is None or name in answered:
                self.failed[name] = "was not asked, or answered twice"
                continue
            try:
                reply = self.form.read(message, site)
            except SiteError as error:
                self.failed[name] = str(error)
                continue
            answered.add(name)
            yield reply

    def _name(self, message: Message) -> str:
        node = message.metadata.src_node_id
        site = self.sites.get(node)
        return site.site if site is not None else f"node {node}"


def in_site_order(
    messages: Iterable[Message], name_of: Callable[[Message], str], expected: Sequence[str]
) -> Iterator[Message]:
    """Yield replies in site order; hold back only those that came too early.

    Parameters
    ----------
    messages
        Replies as they come.
    name_of
        Returns the name of the site a reply came from.
    expected
        Names of the sites that were asked, sorted.
    """
    missing = list(expected)
    early: list[tuple[str, int, Message]] = []
    for count, message in enumerate(messages):
        heapq.heappush(early, (name_of(message), count, message))
        while early and missing and early[0][0] == missing[0]:
            missing.pop(0)
            yield heapq.heappop(early)[2]
    while early:
        yield heapq.heappop(early)[2]


@dataclass(frozen=True)
class Quorum:
    """How many sites of a round are enough.

    Parameters
    ----------
    server_round
        Number of the round, from 0.
    participants
        Names of the sites that were sampled for it.
    needed
        Sites without which the round ends.
    """

    server_round: int
    participants: Sequence[str]
    needed: int

    def require(self, count: int, what: str, failed: Mapping[str, str]) -> None:
        """Raise ``RoundError`` unless enough sites did what was asked of them.

        Parameters
        ----------
        count
            How many did.
        what
            What they did, such as ``are connected``.
        failed
            Why the others did not, by name.
        """
        if count >= self.needed:
            return
        why = "; ".join(f"{name}: {reason}" for name, reason in sorted(failed.items()))
        raise RoundError(
            f"round {self.server_round}: {count} of {len(self.participants)} sites {what}, "
            f"{self.needed} are required (--min-replies). {why}"
        )


class Stopwatch:
    """Measures seconds of work, without the time in which the next reply was waited for."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._waited = 0.0

    def not_counting(self, messages: Iterable[Message]) -> Iterator[Message]:
        """Pass messages on; do not count the time until the next one is there."""
        started = time.perf_counter()
        for message in messages:
            self._waited += time.perf_counter() - started
            yield message
            started = time.perf_counter()
        self._waited += time.perf_counter() - started

    def seconds(self) -> float:
        """Return the seconds of work so far."""
        return time.perf_counter() - self._started - self._waited
