"""A site's connection to the server: what ``flower-supernode`` does, in the process that trains.

Stock Flower starts a fresh process for every message. Here one process asks the SuperLink for
messages, answers them with the app installed at the site, and looks at no code the server offers.
It opens no port. A message stays on disk until it is answered (``inbox.py``), so that a killed
site answers it when it is back. Where it cannot say that it kept what it was asked, it activates
its node anew, from which the server sees that it must ask again.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Error, Message, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.common.serde import message_to_proto
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.error import FlowerError
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    pull_objects,
    push_objects,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.federation.files import private_folder, write_private
from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.message_objects import (
    OVERLOADED,
    check_parts,
    limited,
    push_part,
)
from nnunetv2_federated.flower.deployment.site.inbox import Inbox, part_names, reason_of
from nnunetv2_federated.flower.deployment.site.retry import LostError, Retry
from nnunetv2_federated.flower.records import SITE_FAILED

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
_GOODBYE_SECONDS = 5.0
_DOUBT_SECONDS = 20.0
_REFUSED = (401, 412)
_RUN_ENDED = 403
_UNWANTED = (400, 403, 404)


class _Doubt:
    """Whether the server may have lost a message: it failed, and nothing has come since."""

    def __init__(self, server: Address) -> None:
        self._server = server
        self._since: float | None = None

    def __bool__(self) -> bool:
        return self._since is not None

    def set(self, doubt: bool) -> None:
        """Begin to doubt now, or end it."""
        self._since = time.monotonic() if doubt else None

    def check(self) -> None:
        """Raise ``LostError`` if nothing comes for some time after the server failed.

        Not at once: to connect anew costs a busy server more than to be asked for messages.
        """
        now = time.monotonic()
        self._since = self._since or now
        if now - self._since > _DOUBT_SECONDS:
            self._since = None
            raise LostError(f"{self._server} failed and may have lost a message; connecting anew")


class SuperNode:
    """A connection of one site to the SuperLink, for a ``with`` block.

    Parameters
    ----------
    server
        Address of the SuperLink.
    key
        Key of the site; the public half was registered with the SuperLink.
    authority
        PEM of the certificate authority.
    inbox
        Keeps the message that is being answered.
    max_bytes
        Bytes of the largest message that is accepted.
    stopped
        Asked between attempts; ``True`` ends them.

    Raises
    ------
    LostError
        If the server refuses the key or is no SuperLink: that may change.
    SettingsError
        If the server's certificate is not to be trusted.
    """

    def __init__(
        self,
        server: Address,
        key: ec.EllipticCurvePrivateKey,
        authority: bytes,
        inbox: Inbox,
        *,
        max_bytes: int,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._server = server
        self._public_key = public_key_to_bytes(key.public_key())
        self._client = FleetHttpClient.from_server_address(
            str(server),
            insecure=False,
            root_certificates=authority,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(key, key.public_key()),
            ],
        )
        self._inbox = inbox
        self._node_file = inbox.node_file
        self._max_bytes = max_bytes
        self._stopped = stopped
        self._call = Retry(server, stopped)
        self._lost = threading.Event()
        self._doubt = _Doubt(server)
        self._node = Node()
        self._heartbeat = HeartbeatSender(self._beat)

    def __enter__(self) -> Self:
        try:
            self._node = self._connect()
        except BaseException:
            self._client.close()
            raise
        with contextlib.suppress(OSError):  # it only saves a minute after a kill
            private_folder(self._node_file.parent)
            write_private(self._node_file, str(self._node.node_id).encode())
        self._heartbeat.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._call.closing.set()
        if kind is None or issubclass(kind, Exception):
            self._take_leave()
            return
        leaving = threading.Thread(target=self._take_leave, daemon=True)  # told to stop: do so
        leaving.start()
        leaving.join(_GOODBYE_SECONDS)

    def _take_leave(self) -> None:
        if self._heartbeat.is_running:
            self._heartbeat.stop()
        with contextlib.suppress(httpx.HTTPError, RuntimeError):
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))
        self._client.close()

    def _connect(self) -> Node:
        before = self._call.overloads
        try:
            return self._activate()
        except httpx.TransportError as error:
            raise LostError(f"no connection to {self._server}: {error}") from error
        except httpx.HTTPStatusError as error:
            with contextlib.suppress(httpx.HTTPError):
                if (node := self._still_active(in_doubt=self._call.overloads > before)) is not None:
                    return node
            raise LostError(_refusal(self._server, error)) from error

    def _activate(self) -> Node:
        """Activate the node; what the server asked before, it asks again."""
        request = ActivateNodeRequest(
            public_key=self._public_key, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
        )
        answer = self._call(self._client.ActivateNode, request, patient=False)
        self._inbox.forget()
        return Node(node_id=answer.node_id)

    def _still_active(self, *, in_doubt: bool) -> Node | None:
        """Go on as the node that this site was before it was killed, or activate it anew.

        It goes on if it kept what it was asked, or ``in_doubt``: if the server failed before it
        refused to activate the node, it may have done so. Otherwise it deactivates that node first.
        """
        if not self._node_file.is_file():
            return None
        try:
            node = Node(node_id=int(self._node_file.read_text()))
        except ValueError:  # too large: nobody's
            return None
        if in_doubt or self._inbox.kept() is not None:
            alive = self._call(self._client.SendNodeHeartbeat, _heartbeat(node), patient=False)
            self._doubt.set(in_doubt)
            return node if alive.success else None
        leave = DeactivateNodeRequest(node_id=node.node_id)
        self._call(self._client.DeactivateNode, leave, patient=False)
        return self._activate()

    def messages(self) -> Iterator[Message]:
        """Yield what the server asks: first what was left unanswered, then what comes.

        Raises
        ------
        LostError
            If the connection is no longer good.
        """
        kept = self._inbox.kept()
        if kept is not None:
            logger.info("a message was left unanswered: answering it now")
            yield from self._opened(kept)
        while not self._stopped():
            if self._lost.is_set():
                raise LostError("the server does not know this site's connection any more")
            with self._losing():
                received = self._pull()
            if not received.messages_list:
                time.sleep(POLL_SECONDS)
                continue
            try:
                with self._losing():
                    self._keep(received)
            except (SiteError, OSError) as error:
                self._refuse(received, error)
                continue
            yield from self._opened(received)

    def _pull(self) -> PullMessagesResponse:
        """Ask once: a message whose envelope got lost on the way is not sent a second time.

        It may also get lost when the server fails over it; see :class:`_Doubt`.
        """
        request = PullMessagesRequest(node=self._node)
        before = self._call.overloads
        try:
            received = self._call(self._client.PullMessages, request, patient=False)
        except httpx.TransportError as error:
            raise LostError(f"the connection to {self._server} broke: {error}") from error
        if received.messages_list:
            self._doubt.set(False)
        elif self._call.overloads > before or self._doubt:
            self._doubt.check()
        return received

    def _opened(self, received: PullMessagesResponse) -> Iterator[Message]:
        try:
            message = self._inbox.open(received)
        except SiteError as error:
            self._refuse(received, error)
            return
        self._identify(message.metadata.run_id)
        yield message

    def _refuse(self, received: PullMessagesResponse, error: SiteError | OSError) -> None:
        """Answer that the message could not be taken, and why."""
        logger.error("a message was refused", exc_info=error)
        self._inbox.forget()
        metadata = metadata_from_proto(received.messages_list[0].metadata)
        self._identify(metadata.run_id)
        question = make_message(metadata=metadata, content=RecordDict())
        reason = str(error) if isinstance(error, SiteError) else reason_of(error)
        self.answer(Message(Error(SITE_FAILED, reason), reply_to=question))

    def answer(self, reply: Message) -> None:
        """Send the answer, and forget the question.

        Raises
        ------
        LostError
            If the connection is no longer good, or nobody waits for the answer any more.
        """
        with self._losing(forget=True):
            upload(reply, self._node, self._client, self._call)
        self._inbox.forget()

    def _keep(self, received: PullMessagesResponse) -> None:
        """Fetch a message's parts onto disk, and only then tell the server that it has come."""
        run_id = received.messages_list[0].metadata.run_id
        tree = received.message_object_trees[0]
        check_parts(tree, self._max_bytes)
        fetch = functools.partial(self._call, self._client.PullObject)
        pull = make_pull_object_fn_protobuf(fetch, self._node, run_id)
        contents = pull_objects(part_names(tree), limited(pull, self._max_bytes))
        self._inbox.keep(received, contents)
        make_confirm_message_received_fn_protobuf(
            lambda request: self._call(self._client.ConfirmMessageReceived, request),
            self._node,
            run_id,
        )(received.messages_list[0].metadata.message_id)

    def _identify(self, run_id: int) -> None:
        """Set Flower's process-wide identity, from which ``Message()`` takes run and node."""
        TaskIdentity.task_id = 1
        TaskIdentity.run_id, TaskIdentity.node_id = run_id, self._node.node_id

    def _beat(self) -> bool:
        try:
            if not self._client.SendNodeHeartbeat(_heartbeat(self._node)).success:
                self._lost.set()
        except httpx.TransportError:
            return False
        except httpx.HTTPStatusError as error:
            if error.response.status_code in OVERLOADED:
                return False
            self._lost.set()
        return True

    @contextlib.contextmanager
    def _losing(self, *, forget: bool = False) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPStatusError as error:
            if forget and error.response.status_code in _UNWANTED:
                self._inbox.forget()  # its run has ended: nobody waits for the answer
            raise LostError(_refusal(self._server, error)) from error
        except (ObjectPushError, ObjectPullError) as error:  # it was killed in between
            raise LostError(f"{self._server} lost a part of the message") from error


def upload(reply: Message, node: Node, client: FleetHttpClient, call: Retry) -> None:
    """Send an answer: its envelope first, then the parts that the server does not have yet.

    Parameters
    ----------
    reply
        The answer.
    node
        Node of the site.
    client, call
        The connection, and how its methods are called.
    """
    with no_object_id_recompute():
        reply.metadata.__dict__["_message_id"] = reply.object_id
        tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
        envelope = message_to_proto(
            remove_content_from_message(reply) if reply.has_content() else reply
        )
        response = call(
            client.PushMessages,
            PushMessagesRequest(
                node=node,
                messages_list=[envelope],
                message_object_trees=[tree],
                clientapp_runtime_list=[0.0],
            ),
        )

        def push(part: PushObjectRequest) -> PushObjectResponse:
            return push_part(
                functools.partial(call, client.PushObject),
                functools.partial(call, client.PullObject),
                part,
            )

        push_objects(
            objects,
            make_push_object_fn_protobuf(push, node, reply.metadata.run_id, response.session_id),
            object_ids_to_push=set(response.objects_to_push),
        )


def _heartbeat(node: Node) -> SendNodeHeartbeatRequest:
    return SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)


def _refusal(server: Address, error: httpx.HTTPStatusError) -> str:
    status = error.response.status_code
    known = FlowerError.from_json(error.response.text)
    reason = f", {known.message}" if known is not None else ""
    if status == _RUN_ENDED:
        return f"{server}: the run ended before this site's answer came"
    if status in _REFUSED:
        return (
            f"{server} refuses this site (HTTP {status}{reason}): its key is not registered, or "
            "the clocks of both machines differ."
        )
    if status in OVERLOADED:
        return f"{server} fails (HTTP {status}); this site goes on trying"
    return f"{server} answered HTTP {status}: is this the address of the federation's server?"
