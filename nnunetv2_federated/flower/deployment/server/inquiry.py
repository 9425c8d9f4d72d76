"""What the server has asked its sites, and what has come of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import httpx
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node, NodeInfo
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient

from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.flower.deployment.message_objects import (
    OVERLOADED,
    check_parts,
    limited,
    put_together,
)
from nnunetv2_federated.flower.deployment.signing import SIGNATURE
from nnunetv2_federated.flower.records import NOT_YET, SITE_FAILED, num_bytes

_SITE_LOST = (ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE)
"""It went away while it was asked, or in the middle of its answer."""
_BEYOND_QUESTION = 64 * 2**20
"""Bytes of an answer beyond those of its question: weights go both ways, what else is small."""
_FAILING_SECONDS = 120.0
"""How long the SuperLink may fail over one answer, while it works otherwise."""
_MOST_TIMES_ASKED = 20
"""Attempts at one question, to a site that is lost again and again."""


@dataclass
class _Arriving:
    """An answer that is being uploaded."""

    tree: ObjectTree
    pull: Callable[[str], bytes]
    of_superlink: bool
    """It says why there is no answer of the site."""
    parts: dict[str, bytes] = field(default_factory=dict)


@dataclass
class _Asked:
    """A question to a node, and what has come of it."""

    question: Message
    times: int = 1
    arriving: _Arriving | None = None
    failing_since: float | None = None
    """Since when the SuperLink fails over the answer (``time.monotonic``)."""
    lost_until: float = 0.0
    """When to give up a node that went away (``time.monotonic``)."""
    reason: str = ""
    """Reason why the node is lost."""

    @property
    def node(self) -> int:
        return self.question.metadata.dst_node_id

    @property
    def room(self) -> int:
        """Bytes its answer may have."""
        return num_bytes(self.question.content) + _BEYOND_QUESTION

    def error(self, code: int, reason: str | None) -> Message:
        return Message(Error(code, clean(reason or "failed")), reply_to=self.question)

    @contextlib.contextmanager
    def trying(self) -> Iterator[None]:
        """Note whether the SuperLink fails over this answer; end only with the run."""
        try:
            yield
        except (httpx.HTTPError, ValueError) as error:  # ValueError: of what it answers in
            if not is_transient(error):
                raise
            self.failing_since = self.failing_since or time.monotonic()
        else:
            self.failing_since = None

    @property
    def failed(self) -> bool:
        since = self.failing_since
        return since is not None and time.monotonic() - since > _FAILING_SECONDS


class Link(Protocol):
    """What an inquiry needs of a Grid; :class:`.NetworkGrid` has it."""

    node: Node
    patience: float
    impatient: RuntimeHttpClient
    """Asks the SuperLink once, where the Grid itself asks until it is answered."""

    @property
    def run(self) -> Run:
        """The run that asks."""

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Nodes that are connected."""

    def refused(self) -> dict[int, str]:
        """Nodes that may take part no more, and why."""

    def guard_storage(self) -> None:
        """Delete what nobody was asked for; turn out who stores too much."""

    def forget(self, message: str) -> None:
        """Let the SuperLink delete a message."""

    def send(self, messages: Iterable[Message]) -> dict[str, Message]:
        """Sign and send; return by id what the SuperLink has taken."""


class Inquiry:
    """Questions to sites; each is open until it is answered or given up.

    Nothing here waits for a site. A node that was lost is asked again if it is back within the
    Grid's ``patience``, and one that has activated anew since it was asked: it has not kept the
    question. An answer that has more parts or bytes than it can have, cannot be read, is not from
    whom it says, or over which the SuperLink fails again and again, is an error of that node.
    """

    def __init__(self, link: Link, seconds: float) -> None:
        """Ask over a Grid; the SuperLink forgets what is not answered within these seconds."""
        self._link = link
        self._seconds = seconds
        self._asked: dict[str, _Asked] = {}
        self._lost: list[_Asked] = []
        self._unsent: list[_Asked] = []

    @property
    def open(self) -> set[int]:
        """Nodes that have not answered."""
        return {asked.node for asked in (*self._asked.values(), *self._lost, *self._unsent)}

    def send(self, questions: Iterable[Message]) -> None:
        """Ask these, too."""
        self._send([_Asked(question) for question in questions])

    def give_up(self, nodes: Collection[int]) -> None:
        """Take no answer of these nodes any more."""
        self._asked = {k: asked for k, asked in self._asked.items() if asked.node not in nodes}
        self._lost = [asked for asked in self._lost if asked.node not in nodes]
        self._unsent = [asked for asked in self._unsent if asked.node not in nodes]

    def look(self) -> Iterator[Message]:
        """Yield each answer that is complete now, or the error that is in its place.

        Raises
        ------
        httpx.HTTPError
            If the SuperLink has given the run up, or does not answer for long.
        """
        yield from self._turned_out()
        self._poll()
        complete = False
        for name, asked in list(self._asked.items()):
            answer = self._answer(asked)
            if answer is None:
                continue
            complete = True
            if self._asked.pop(name, None) is None:  # given up in between
                continue
            refused = self._link.refused().get(asked.node)
            yield answer if refused is None else asked.error(SITE_FAILED, refused)
        if not complete:
            self._link.guard_storage()
        if self._lost or not complete:
            self._ask_again()
        yield from self._hopeless()

    @property
    def questions(self) -> set[str]:
        """Names of the messages that wait for an answer."""
        return set(self._asked)

    @property
    def arriving(self) -> dict[str, int]:
        """Nodes of the answers that are known to come, by the answer's name."""
        return {
            asked.arriving.tree.object_id: asked.node
            for asked in self._asked.values()
            if asked.arriving is not None
        }

    @property
    def rooms(self) -> dict[int, int]:
        """Bytes that the answer of each asked node may have."""
        return {asked.node: asked.room for asked in self._asked.values()}

    def _turned_out(self) -> Iterator[Message]:
        """Give up those who may take part no more, with an error each."""
        refused = self._link.refused()
        everyone = [*self._asked.values(), *self._lost, *self._unsent]
        gone = {asked.node: asked for asked in everyone if asked.node in refused}
        self.give_up(gone.keys())
        for node, asked in gone.items():
            yield asked.error(SITE_FAILED, refused[node])

    def _send(self, questions: Sequence[_Asked]) -> None:
        if not questions:
            return
        for asked in questions:
            asked.question.metadata.ttl = self._seconds
        taken = {
            id(message): name
            for name, message in self._link.send([a.question for a in questions]).items()
        }
        for asked in questions:
            name = taken.get(id(asked.question))
            if name is None:
                self._unsent.append(asked)
            else:
                self._asked[name] = asked

    def _poll(self) -> None:
        """See which answers are coming: of all sites at once, of each alone if that fails."""
        names = [name for name, asked in self._asked.items() if asked.arriving is None]
        try:
            self._pull(names)
        except httpx.TransportError:  # :meth:`_ask_again` sees whether it comes back
            return
        except (httpx.HTTPStatusError, ValueError) as error:
            if not is_transient(error):
                raise
            for name in names:
                with self._asked[name].trying():
                    self._pull([name])
        else:
            for name in names:
                self._asked[name].failing_since = None

    def _pull(self, names: Sequence[str]) -> None:
        if not names:
            return
        found = self._link.impatient.PullMessages(PullAppMessagesRequest(message_ids=names))
        for envelope, tree in zip(found.messages_list, found.message_object_trees, strict=True):
            asked = self._asked.get(envelope.metadata.reply_to_message_id)
            if asked is None:  # a site may send what answers no question
                self._link.forget(tree.object_id)
                continue
            pull = make_pull_object_fn_protobuf(
                self._link.impatient.PullObject, self._link.node, self._link.run.run_id
            )
            # the SuperLink has checked the envelope, not what is in it
            of_superlink = envelope.metadata.src_node_id == self._link.node.node_id
            asked.arriving = _Arriving(tree, limited(pull, asked.room), of_superlink)

    def _answer(self, asked: _Asked) -> Message | None:
        """Return a whole answer, or what is wrong; ``None`` to look again."""
        if asked.failed:
            reason = "the SuperLink fails over its answer again and again; superlink.log says why"
            return asked.error(SITE_FAILED, reason)
        if asked.arriving is None:
            return None
        reply = None
        with asked.trying():
            reply = self._fetch(asked, asked.arriving)
        if reply is None or not reply.has_error():
            return reply
        if reply.error.code in _SITE_LOST and asked.arriving.of_superlink:
            self._lose(asked, reply.error.reason or "")
            return None
        return asked.error(reply.error.code, reply.error.reason)

    def _fetch(self, asked: _Asked, answer: _Arriving) -> Message | None:
        """Fetch what has come of an answer; once it is whole, return it, or what is wrong."""
        try:
            check_parts(answer.tree, asked.room)
            for part in iterate_object_tree(answer.tree):
                if part.object_id not in answer.parts:
                    answer.parts[part.object_id] = answer.pull(part.object_id)
            reply = put_together(answer.tree, answer.parts)
            if not answer.of_superlink:
                _check_sender(reply, asked.question)
        except ObjectUnavailableError:
            return None
        except ObjectPullError as error:
            answer.of_superlink = True
            reason = f"lost in the middle of its answer: {error}"
            return asked.error(ErrorCode.MESSAGE_UNAVAILABLE, reason)
        except SiteError as error:
            reply = asked.error(SITE_FAILED, str(error))
        self._link.forget(answer.tree.object_id)
        return reply

    def _lose(self, asked: _Asked, reason: str) -> None:
        asked.lost_until = time.monotonic() + self._link.patience
        asked.reason = reason
        self._asked = {name: other for name, other in self._asked.items() if other is not asked}
        self._lost.append(asked)

    def _ask_again(self) -> None:
        """Ask nodes that are back, and those that have forgotten the question."""
        back = self._take_back()
        for asked in back:
            if asked.times == _MOST_TIMES_ASKED:
                asked.reason = f"was lost {asked.times} times while it was asked"
                self._unsent.append(asked)
        self._send(
            [
                _Asked(_again(asked.question), asked.times + 1)
                for asked in back
                if asked.times < _MOST_TIMES_ASKED
            ]
        )

    def _take_back(self) -> list[_Asked]:
        """Remove and return what has to be asked again.

        These are questions to nodes that were lost and are connected now, and to nodes that have
        activated since they were asked: those did not keep the question.
        """
        activated = {
            node.node_id: datetime.fromisoformat(node.last_activated_at).timestamp()
            for node in self._link.get_nodes()
        }
        back = [asked for asked in self._lost if asked.node in activated]
        self._lost = [asked for asked in self._lost if asked.node not in activated]
        forgotten = {
            name: asked
            for name, asked in self._asked.items()
            if activated.get(asked.node, 0.0) > asked.question.metadata.created_at
        }
        self._asked = {k: asked for k, asked in self._asked.items() if k not in forgotten}
        return [*back, *forgotten.values()]

    def _hopeless(self) -> Iterator[Message]:
        """Yield an error for those who are away for too long, or could not be asked."""
        now = time.monotonic()
        over = [asked for asked in self._lost if asked.lost_until <= now]
        self._lost = [asked for asked in self._lost if asked.lost_until > now]
        unsent, self._unsent = self._unsent, []
        for asked in over + unsent:
            yield asked.error(NOT_YET, asked.reason or "the SuperLink takes no message for it")


def is_transient(error: Exception) -> bool:
    """Whether the SuperLink may answer later, and the run is not over."""
    return not isinstance(error, httpx.HTTPStatusError) or error.response.status_code in OVERLOADED


def _again(question: Message) -> Message:
    content = {k: v for k, v in question.content.items() if k != SIGNATURE}
    metadata = question.metadata
    return Message(RecordDict(content), metadata.dst_node_id, metadata.message_type)


def _check_sender(reply: Message, question: Message) -> None:
    """Refuse an answer that says of itself what the SuperLink did not: it may be a forgery."""
    asked, answered = question.metadata, reply.metadata
    whose = answered.reply_to_message_id, answered.src_node_id
    if not reply.has_error() and whose != (asked.message_id, asked.dst_node_id):
        raise SiteError("refused: it answers another question, or as another site")
