"""The server's end of the wire: Flower's Grid, made for long rounds and bad lines.

Written for Flower 1.41 and 1.42, see ``fleet.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
)
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid import HttpGrid

from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.flower.deployment.admission import Admission
from nnunetv2_federated.flower.deployment.parts import OVERLOADED, limited, push_part, put_together
from nnunetv2_federated.flower.deployment.signing import SIGNATURE, sign
from nnunetv2_federated.flower.deployment.storage import Storage, find_unwanted
from nnunetv2_federated.flower.records import NOT_YET, SITE_FAILED, num_bytes

POLL_SECONDS = 0.5
RUN_ENDED = (401, 403)
"""HTTP statuses by which the SuperLink refuses the server of a run that has ended."""
_LONGEST_PAUSE = 5
_SITE_LOST = (ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE)
"""It went away while it was asked, or in the middle of its answer."""
_BEYOND_QUESTION = 64 * 2**20
"""Bytes of an answer beyond those of its question: weights go both ways, what else is small."""


@dataclass(frozen=True)
class _Lost:
    """A node that went away, and what it was asked."""

    until: float
    """When to give it up (``time.monotonic``)."""
    question: Message
    answer: Message
    """For who asked, if it does not come back."""

    @property
    def node(self) -> int:
        return self.question.metadata.dst_node_id


@dataclass(frozen=True)
class _Arriving:
    """An answer that is being uploaded."""

    tree: ObjectTree
    pull: Callable[[str], bytes]
    parts: dict[str, bytes] = field(default_factory=dict)


def _most_bytes(question: Message) -> int:
    """Bytes that its answer can be at most."""
    return num_bytes(question.content) + _BEYOND_QUESTION


def _asked_again(question: Message) -> Message:
    content = {k: v for k, v in question.content.items() if k != SIGNATURE}
    metadata = question.metadata
    return Message(RecordDict(content), metadata.dst_node_id, metadata.message_type)


def _patient() -> RetryInvoker:
    """Ask until the SuperLink answers; what it refuses is an error (Flower ends the process)."""
    return RetryInvoker(
        wait_gen_factory=lambda: exponential(max_delay=_LONGEST_PAUSE),
        recoverable_exceptions=(httpx.TransportError, httpx.HTTPStatusError),
        max_tries=None,
        max_time=None,
        should_giveup=lambda error: (
            isinstance(error, httpx.HTTPStatusError)
            and error.response.status_code not in OVERLOADED
        ),
    )


class _Client(RuntimeHttpClient):
    """Flower's, which asks again when it was not answered, and so may send a part twice."""

    def PushObject(self, request: PushObjectRequest) -> PushObjectResponse:  # noqa: N802
        return push_part(super().PushObject, self.PullObject, request)


class NetworkGrid(HttpGrid):
    """Flower's Grid, which signs what it sends and passes replies on as they come.

    Flower's own waits 3 s between looks, and for the slowest upload of those that have begun; it
    returns all replies at the end, and believes what they say of themselves.
    """

    signing_key: Ed25519PrivateKey
    patience = 0.0
    """Seconds to wait for a node that was lost while it was asked."""

    admission: Admission
    """The sites of the run, and who of them was turned out."""

    storage: Storage
    """The SuperLink's database."""

    def _connect(self) -> None:
        self._client = _Client.from_server_address(
            server_address=self._addr,
            insecure=False,
            root_certificates=self._cert,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="flwr-serverapp"),
                RuntimeTokenHttpInterceptor(token=self._token),
            ],
            retry_invoker=_patient(),
        )

    def site_names(self) -> dict[int, str]:
        """Names of the connected sites, by node id; strangers and who was revoked are left out."""
        return self.admission.names([node.node_id for node in self.get_nodes()])

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Send, and yield each reply when it is there, until the time is over.

        A node that was lost is asked again if it is back within :attr:`patience` seconds, and one
        that has activated anew since it was asked: it has not kept the question. A reply that is
        larger than it can be, unreadable or not from whom it says is an error of that node.
        """
        end = None if timeout is None else time.monotonic() + timeout
        questions = list(messages)
        away = self._turned_away(questions)
        yield from away.values()
        waiting = self._send([q for q in questions if q.metadata.dst_node_id not in away])
        arriving: dict[str, _Arriving] = {}
        lost: list[_Lost] = []
        while (waiting or lost) and (end is None or time.monotonic() < end):
            away = self._turned_away([*waiting.values(), *(site.question for site in lost)])
            waiting = {k: q for k, q in waiting.items() if q.metadata.dst_node_id not in away}
            lost = [site for site in lost if site.node not in away]
            arriving = {name: answer for name, answer in arriving.items() if name in waiting}
            yield from away.values()
            self._look_for_answers(waiting, arriving)
            complete = 0
            for name in list(arriving):
                reply = self._fetch(arriving[name], waiting[name])
                if reply is None:
                    continue
                complete += 1
                question = waiting.pop(name)
                del arriving[name]
                reply = self._turned_away([question]).get(question.metadata.dst_node_id, reply)
                if not reply.has_error():
                    yield reply
                # the SuperLink's own errors do not say which node they are about
                elif reply.error.code in _SITE_LOST:
                    answer = Message(Error(NOT_YET, reply.error.reason), reply_to=question)
                    lost.append(_Lost(time.monotonic() + self.patience, question, answer))
                else:
                    yield Message(reply.error, reply_to=question)
            if not complete:
                self._guard_storage(waiting, arriving)
                lost, back = self._look_for(lost, waiting)
                arriving = {name: answer for name, answer in arriving.items() if name in waiting}
                waiting |= self._send(back)
                time.sleep(POLL_SECONDS)
            now = time.monotonic()
            yield from [site.answer for site in lost if site.until <= now]
            lost = [site for site in lost if site.until > now]

    def _turned_away(self, questions: Iterable[Message]) -> dict[int, Message]:
        """Return, by node, an answer for each site that was asked but may take part no more."""
        refused = self.admission.refused()
        nodes = {question.metadata.dst_node_id: question for question in questions}
        return {
            node: Message(Error(SITE_FAILED, refused[node]), reply_to=question)
            for node, question in nodes.items()
            if node in refused
        }

    def _send(self, messages: Iterable[Message]) -> dict[str, Message]:
        signed = list(messages)
        sizes = [num_bytes(message.content) for message in signed]
        # what all are asked is stored once, what each answers is about as large
        self.storage.check_room(max(sizes, default=0) + sum(sizes))
        for message in signed:
            sign(message, self.signing_key)
        ids = list(self.push_messages(signed))
        return {name: message for name, message in zip(ids, signed, strict=True) if name}

    def _look_for_answers(
        self, waiting: Mapping[str, Message], arriving: dict[str, _Arriving]
    ) -> None:
        """Add those of which the SuperLink knows that they are coming."""
        if not waiting:
            return
        found = self._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=waiting))
        for envelope, tree in zip(found.messages_list, found.message_object_trees, strict=True):
            name = envelope.metadata.reply_to_message_id
            if name not in waiting:  # a site may send what answers no question
                self._forget(tree.object_id)
            if name in arriving or name not in waiting:
                continue
            pull = make_pull_object_fn_protobuf(
                self._runtime_client.PullObject, self.node, self.run.run_id
            )
            arriving[name] = _Arriving(tree, limited(pull, _most_bytes(waiting[name])))

    def _fetch(self, answer: _Arriving, question: Message) -> Message | None:
        """Fetch what has come of an answer; once it is whole, return it, or what is wrong."""
        try:
            for part in iterate_object_tree(answer.tree):
                if part.object_id not in answer.parts:
                    answer.parts[part.object_id] = answer.pull(part.object_id)
            reply = put_together(answer.tree, answer.parts)
            _check_sender(reply, question)
        except ObjectUnavailableError:
            return None
        except ObjectPullError as error:
            reason = f"lost in the middle of its answer: {error}"
            return Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, reason), reply_to=question)
        except SiteError as error:
            reply = Message(Error(SITE_FAILED, str(error)), reply_to=question)
        self._forget(answer.tree.object_id)
        return reply

    def _forget(self, message: str) -> None:
        """Let the SuperLink delete a message that was received, or is not wanted."""
        self._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self.node, run_id=self.run.run_id, message_object_id=message
            )
        )

    def _guard_storage(
        self, waiting: Mapping[str, Message], arriving: Mapping[str, _Arriving]
    ) -> None:
        """Delete what nobody was asked for, turn out who stores too much, end before it is full."""
        most = {
            question.metadata.dst_node_id: _most_bytes(question) for question in waiting.values()
        }
        unwanted = find_unwanted(
            self.storage.messages(),
            waiting,
            {a.tree.object_id: waiting[name].metadata.dst_node_id for name, a in arriving.items()},
            most,
        )
        for node, size in unwanted.sites.items():
            reason = f"stored {size} bytes at the server, of an answer of at most {most[node]}"
            self.admission.turn_out(node, reason)
        for message in unwanted.messages:
            self._forget(message)
        self.storage.check_room(0)

    def _look_for(
        self, lost: list[_Lost], waiting: dict[str, Message]
    ) -> tuple[list[_Lost], list[Message]]:
        """Return who is lost still, and what to ask those who are back; these wait no more."""
        activated = {
            node.node_id: datetime.fromisoformat(node.last_activated_at).timestamp()
            for node in self.get_nodes()
        }
        forgotten = {
            name: question
            for name, question in waiting.items()
            if activated.get(question.metadata.dst_node_id, 0.0) > question.metadata.created_at
        }
        for name in forgotten:
            del waiting[name]
        still = [site for site in lost if site.node not in activated]
        back = [site.question for site in lost if site.node in activated]
        return still, [_asked_again(question) for question in (*back, *forgotten.values())]


def _check_sender(reply: Message, question: Message) -> None:
    """Refuse an answer that says of itself what the SuperLink did not: it may be a forgery."""
    asked, answered = question.metadata, reply.metadata
    whose = answered.reply_to_message_id, answered.src_node_id
    if not reply.has_error() and whose != (asked.message_id, asked.dst_node_id):
        raise SiteError("refused: it answers another question, or as another site")
