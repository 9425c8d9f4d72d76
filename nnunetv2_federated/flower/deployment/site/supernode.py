"""A site's end of the wire: what ``flower-supernode`` does, in the process that trains.

Stock Flower starts a fresh process for every message. Here one process asks the SuperLink for
messages, answers them with the app installed at the site, and looks at no code the server offers.
It opens no port. A message stays on disk until it is answered, so that a killed site answers it
when it is back. Where it cannot say that it kept what it was asked, it activates its node anew,
from which the server sees that it must ask again.

Written for Flower 1.41 and 1.42: this module, ``grid.py``, ``inquiry.py``, ``parts.py`` and
``superlink.py`` hold everything internal to Flower that deployment needs.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

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
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.error import FlowerError
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
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
from google.protobuf.message import DecodeError

from nnunetv2_federated.federation.errors import FederationError, SettingsError, SiteError
from nnunetv2_federated.federation.files import private_folder, write_private
from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.message_objects import (
    GIVE_UP_SECONDS,
    OVERLOADED,
    check_parts,
    limited,
    push_part,
    put_together,
)
from nnunetv2_federated.flower.records import SITE_FAILED

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
_LONGEST_PAUSE = 10.0
_GOODBYE_SECONDS = 5.0
_DOUBT_SECONDS = 20.0
_REFUSED = (401, 412)
_RUN_ENDED = 403
_UNWANTED = (400, 403, 404)
_FAILED = 500
_OBJECT_ID = re.compile(r"[0-9a-f]{64}")
_MESSAGE_FILE = "message.pb"

Request = TypeVar("Request")
Response = TypeVar("Response")


class LostError(FederationError):
    """There is no connection any more, or not yet; try again."""


class Fleet:
    """A connection of one site to the SuperLink, for a ``with`` block.

    Parameters
    ----------
    server
        Where the SuperLink's fleet API is.
    key
        The site's; the public half was registered with the SuperLink.
    authority
        PEM of the certificate authority.
    inbox
        Folder for the message being answered.
    max_bytes
        Largest message accepted.
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
        inbox: Path,
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
        self._node_file = inbox.with_name("node")
        self._max_bytes = max_bytes
        self._stopped = stopped
        self._lost = threading.Event()
        self._closing = threading.Event()
        """Ends what threads wait for, after Ctrl-C or SIGTERM in the main thread."""
        self._overloads = 0
        """How often the server failed, or a proxy in its place."""
        self._doubts_since: float | None = None
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
        self._closing.set()
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
        before = self._overloads
        try:
            return self._activate()
        except httpx.TransportError as error:
            raise LostError(f"no connection to {self._server}: {error}") from error
        except httpx.HTTPStatusError as error:
            with contextlib.suppress(httpx.HTTPError):
                if (node := self._still_active(in_doubt=self._overloads > before)) is not None:
                    return node
            raise LostError(_refusal(self._server, error)) from error

    def _activate(self) -> Node:
        """Begin anew: what the server asked before, it asks again."""
        request = ActivateNodeRequest(
            public_key=self._public_key, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
        )
        answer = self._call(self._client.ActivateNode, request, patient=False)
        self._forget()
        return Node(node_id=answer.node_id)

    def _still_active(self, *, in_doubt: bool) -> Node | None:
        """Go on as the node this site was before it was killed, if it kept what it was asked.

        So it does ``in_doubt``, if the server failed before it refused: it may have begun anew.
        """
        if not self._node_file.is_file():
            return None
        try:
            node = Node(node_id=int(self._node_file.read_text()))
        except ValueError:  # too large: nobody's
            return None
        if in_doubt or self._kept() is not None:
            alive = self._call(self._client.SendNodeHeartbeat, _heartbeat(node), patient=False)
            self._doubts_since = time.monotonic() if in_doubt else None
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
        kept = self._kept()
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

        It may also get lost when the server fails over it; see :meth:`_doubt`.
        """
        request = PullMessagesRequest(node=self._node)
        before = self._overloads
        try:
            received = self._call(self._client.PullMessages, request, patient=False)
        except httpx.TransportError as error:
            raise LostError(f"the connection to {self._server} broke: {error}") from error
        if received.messages_list:
            self._doubts_since = None
        elif self._overloads > before or self._doubts_since is not None:
            self._doubt()
        return received

    def _doubt(self) -> None:
        """Begin anew if nothing comes for some time after the server failed.

        Not at once: beginning anew costs a busy server more than a look.
        """
        now = time.monotonic()
        self._doubts_since = self._doubts_since or now
        if now - self._doubts_since > _DOUBT_SECONDS:
            self._doubts_since = None
            raise LostError(f"{self._server} failed and may have lost a message; connecting anew")

    def _opened(self, received: PullMessagesResponse) -> Iterator[Message]:
        try:
            message = self._open(received)
        except SiteError as error:
            self._refuse(received, error)
            return
        yield message

    def _refuse(self, received: PullMessagesResponse, error: SiteError | OSError) -> None:
        """Answer that the message could not be taken, and why."""
        logger.error("a message was refused", exc_info=error)
        self._forget()
        metadata = metadata_from_proto(received.messages_list[0].metadata)
        self._identify(metadata.run_id)
        question = make_message(metadata=metadata, content=RecordDict())
        reason = str(error) if isinstance(error, SiteError) else reason_of(error)
        self.answer(Message(Error(SITE_FAILED, reason), reply_to=question))

    def answer(self, reply: Message) -> None:
        """Send the answer, and forget the question."""
        run_id = reply.metadata.run_id
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
            envelope = message_to_proto(
                remove_content_from_message(reply) if reply.has_content() else reply
            )
            with self._losing(forget=True):
                response = self._call(
                    self._client.PushMessages,
                    PushMessagesRequest(
                        node=self._node,
                        messages_list=[envelope],
                        message_object_trees=[tree],
                        clientapp_runtime_list=[0.0],
                    ),
                )
                push_objects(
                    objects,
                    make_push_object_fn_protobuf(
                        self._push_part,
                        self._node,
                        run_id,
                        response.session_id,
                    ),
                    object_ids_to_push=set(response.objects_to_push),
                )
        self._forget()

    def _push_part(self, part: PushObjectRequest) -> PushObjectResponse:
        push = functools.partial(self._call, self._client.PushObject)
        return push_part(push, self._pull_part, part)

    def _pull_part(self, part: PullObjectRequest) -> PullObjectResponse:
        return self._call(self._client.PullObject, part)

    def _keep(self, received: PullMessagesResponse) -> None:
        """Fetch a message's parts onto disk, and only then tell the server that it has come."""
        run_id = received.messages_list[0].metadata.run_id
        tree = received.message_object_trees[0]
        check_parts(tree, self._max_bytes)
        ids = [node.object_id for node in iterate_object_tree(tree)]
        if not all(_OBJECT_ID.fullmatch(name) for name in ids):
            raise SiteError("refused: a part of the message has no proper name")
        pull = make_pull_object_fn_protobuf(self._pull_part, self._node, run_id)
        contents = pull_objects(ids, limited(pull, self._max_bytes))
        self._forget()
        private_folder(self._inbox)
        for name, content in contents.items():
            write_private(self._inbox / name, content)
        write_private(self._inbox / _MESSAGE_FILE, received.SerializeToString())
        make_confirm_message_received_fn_protobuf(
            lambda request: self._call(self._client.ConfirmMessageReceived, request),
            self._node,
            run_id,
        )(received.messages_list[0].metadata.message_id)

    def _kept(self) -> PullMessagesResponse | None:
        file = self._inbox / _MESSAGE_FILE
        if not file.is_file():
            return None
        kept = PullMessagesResponse()
        try:
            kept.ParseFromString(file.read_bytes())
        except (DecodeError, OSError):
            logger.exception("the message that was kept cannot be read")
            kept.Clear()
        if len(kept.messages_list) == 1 and len(kept.message_object_trees) == 1:
            return kept
        self._forget()  # it is asked again by a server that sees the node activated anew
        return None

    def _open(self, received: PullMessagesResponse) -> Message:
        metadata, tree = received.messages_list[0].metadata, received.message_object_trees[0]
        try:
            contents = {
                node.object_id: (self._inbox / node.object_id).read_bytes()
                for node in iterate_object_tree(tree)
            }
        except OSError as error:
            raise SiteError(f"refused: the message cannot be read: {reason_of(error)}") from error
        message = put_together(tree, contents)
        self._identify(metadata.run_id)
        return message

    def _identify(self, run_id: int) -> None:
        """Say, where Flower looks for it, whose messages are built here."""
        TaskIdentity.task_id = 1
        TaskIdentity.run_id, TaskIdentity.node_id = run_id, self._node.node_id

    def _forget(self) -> None:
        # first what says that there is a message
        (self._inbox / _MESSAGE_FILE).unlink(missing_ok=True)
        shutil.rmtree(self._inbox, ignore_errors=True)

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
                self._forget()  # its run has ended: nobody waits for the answer
            raise LostError(_refusal(self._server, error)) from error
        except (ObjectPushError, ObjectPullError) as error:  # it was killed in between
            raise LostError(f"{self._server} lost a part of the message") from error

    def _call(
        self, method: Callable[[Request], Response], request: Request, *, patient: bool = True
    ) -> Response:
        """Call until there is an answer: networks come back, and so do servers.

        A server that only fails (HTTP 500) is given up after some minutes. Not ``patient``, only a
        server that is too busy is called again.
        """
        pause = 0.5
        failing_since: float | None = None
        while True:
            try:
                return method(request)
            except httpx.HTTPStatusError as error:
                failing_since = self._still_bearable(error, failing_since)
            except httpx.TransportError as error:
                said = str(error)
                if "SSL" in said and "EOF" not in said:  # EOF: it was killed in between
                    raise SettingsError(f"{self._server}: {error}") from error
                if not patient:
                    raise
                failing_since = None
                logger.warning("no connection to %s: %s", self._server, error)
            if self._stopped() or self._closing.wait(pause):
                raise LostError("stopped")
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _still_bearable(self, error: httpx.HTTPStatusError, since: float | None) -> float | None:
        """Return since when the server fails; raise what need not be tried again."""
        status = error.response.status_code
        if status not in OVERLOADED:
            raise error
        self._overloads += 1
        logger.warning("%s answered HTTP %d", self._server, status)
        if status != _FAILED:  # of a proxy: the server is being started again, perhaps
            return None
        now = time.monotonic()
        if since is not None and now - since > GIVE_UP_SECONDS:
            raise error
        return since or now


def reason_of(error: OSError) -> str:
    """Say what the machine refused, without the path: that is for the site's log."""
    return f"{error.strerror or type(error).__name__}; the site's log says more"


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
