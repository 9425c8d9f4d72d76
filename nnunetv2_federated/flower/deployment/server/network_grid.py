"""The server's connection to its sites: Flower's Grid, made for long rounds and bad lines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from weakref import WeakSet

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message
from flwr.common.constant import SubStatus
from flwr.common.serde import run_from_proto
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.runtime_pb2 import (
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
)
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from nnunetv2_federated.federation.waiting import Grace
from nnunetv2_federated.flower.deployment.message_objects import GIVE_UP_SECONDS
from nnunetv2_federated.flower.deployment.server.admission import Admission
from nnunetv2_federated.flower.deployment.server.inquiry import Inquiry, is_transient
from nnunetv2_federated.flower.deployment.server.storage import Storage, find_unwanted
from nnunetv2_federated.flower.deployment.signing import sign
from nnunetv2_federated.flower.records import num_bytes

POLL_SECONDS = 0.5
RUN_ENDED = (401, 403)
"""HTTP statuses by which the SuperLink refuses the server of a run that has ended."""
_LONGEST_PAUSE = 5
_NEVER = 30 * 24 * 3600.0
_FORGIVEN = 1.5
"""Times the bytes of its answer that a site may store. An answer that is too large is refused when
it is read, and the site may go on; only a site that stores much more is turned out."""
_LATE_SECONDS = 60.0
"""Seconds that the SuperLink still stores an answer that came too late."""


def _patient() -> RetryInvoker:
    """Ask again for some minutes; what the SuperLink refuses is an error (Flower exits)."""
    return RetryInvoker(
        wait_gen_factory=lambda: exponential(max_delay=_LONGEST_PAUSE),
        recoverable_exceptions=(httpx.TransportError, httpx.HTTPStatusError),
        max_tries=None,
        max_time=GIVE_UP_SECONDS,
        should_giveup=lambda error: not is_transient(error),
    )


class _Client(RuntimeHttpClient):
    """Flower's, which asks again when it was not answered, and so may send a part twice.

    The SuperLink refuses a part that it has, and one of a message that the site has taken since, or
    that took too long to send. In the last case it says of the whole message that it is lost, and
    the site is asked again.
    """

    def PushObject(self, request: PushObjectRequest) -> PushObjectResponse:  # noqa: N802
        response = super().PushObject(request)
        response.stored = True
        return response


class NetworkGrid(HttpGrid):
    """Flower's Grid, which signs what it sends and passes replies on as they come.

    Flower's own waits 3 s between looks, and for the slowest upload of those that have begun; it
    returns all replies at the end, and believes what they say of themselves.

    Parameters
    ----------
    address
        ``HOST:PORT`` of the SuperLink.
    authority
        PEM of the certificate authority.
    token
        Token of the run that this process executes.
    signing_key
        Key of the coordinator.
    admission
        Sites of the run, and who of them was turned out.
    storage
        The SuperLink's database.
    patience
        Seconds to wait for a node that was lost while it was asked.
    grace
        When to go on without those who are silent; ``None``: once the time is over.
    """

    def __init__(
        self,
        address: str,
        authority: bytes,
        token: str,
        *,
        signing_key: Ed25519PrivateKey,
        admission: Admission,
        storage: Storage,
        patience: float = 0.0,
        grace: Grace | None = None,
    ) -> None:
        super().__init__(address, False, authority, token=token)  # not insecure
        self.signing_key = signing_key
        self.admission = admission
        self.storage = storage
        self.patience = patience
        self.grace = grace
        self.impatient: RuntimeHttpClient = self._new_client(None)
        """Asks the SuperLink once, where the Grid itself asks until it is answered."""

    @property
    def sequential(self) -> bool:
        """Whether one site works after another: all work at the same time."""
        return False

    def _connect(self) -> None:
        self._inquiries: WeakSet[Inquiry] = WeakSet()
        self._silent: set[int] = set()
        """Nodes that let the time of their last question pass."""
        self._client = self._new_client(_patient())

    def _new_client(self, retry: RetryInvoker | None) -> _Client:
        return _Client.from_server_address(
            server_address=self._addr,
            insecure=self._insecure,
            root_certificates=self._cert,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="flwr-serverapp"),
                RuntimeTokenHttpInterceptor(token=self._token),
            ],
            retry_invoker=retry,
        )

    def pull_task(self) -> int:
        """Take over the run that the token is for; return its id.

        Raises
        ------
        httpx.HTTPError
            If the SuperLink does not hand it out.
        """
        task = self._runtime_client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id = task.task_id
        TaskIdentity.run_id, TaskIdentity.node_id = task.run.run_id, task.context.node_id
        self.set_run(run_from_proto(task.run))
        return int(task.run.run_id)

    def heartbeat(self) -> bool:
        """Tell the SuperLink, once, that the run is being executed; whether it has not given it up.

        Raises
        ------
        httpx.HTTPError
            If the SuperLink does not answer.
        """
        return bool(self.impatient.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success)

    def finish(self, error: BaseException | None) -> None:
        """Tell the SuperLink how the run ended.

        Raises
        ------
        httpx.HTTPError
            If it does not answer, or has given the run up.
        """
        status = SubStatus.COMPLETED if error is None else SubStatus.FAILED
        details = "" if error is None else type(error).__name__
        self._runtime_client.PushTaskOutput(
            PushTaskOutputRequest(sub_status=status, details=details)
        )

    def close(self) -> None:
        """Close the connections."""
        super().close()
        self.impatient.close()

    def site_names(self) -> dict[int, str]:
        """Return the names of the connected sites, by node; without unknown and revoked ones."""
        return self.admission.names([node.node_id for node in self.get_nodes()])

    def refused(self) -> dict[int, str]:
        """Return the nodes that may take part no more, and why."""
        return self.admission.refused()

    def inquiry(self, seconds: float) -> Inquiry:
        """Return an inquiry, for questions that wait so many seconds for an answer."""
        inquiry = Inquiry(self, min(seconds, _NEVER) + _LATE_SECONDS)
        self._inquiries.add(inquiry)
        return inquiry

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Send, and yield each reply when it is there, until the time is over.

        It is over earlier for those who are silent when :attr:`grace` ends. See
        :class:`.inquiry.Inquiry` for who is asked again, and what is refused.
        """
        longest = _NEVER if timeout is None else timeout
        questions = list(messages)
        self.guard_storage()  # what came since the last exchange must not take the room of this one
        inquiry = self.inquiry(longest)
        inquiry.send(questions)
        started, took = time.monotonic(), list[float]()
        while inquiry.open:
            before = len(inquiry.open)
            for reply in inquiry.look():
                self._silent.discard(reply.metadata.src_node_id)
                if not reply.has_error():
                    took.append(time.monotonic() - started)
                yield reply
            end = longest
            if self.grace is not None:
                known = inquiry.open <= self._silent
                end = self.grace.ends(len(questions), took, known=known)
            if time.monotonic() - started >= min(end, longest):
                self._silent |= inquiry.open
                return
            if inquiry.open and len(inquiry.open) == before:
                time.sleep(POLL_SECONDS)

    def send(self, messages: Iterable[Message]) -> dict[str, Message]:
        """Sign and send; return by id what the SuperLink has taken."""
        signed = list(messages)
        sizes = [num_bytes(message.content) for message in signed]
        # what all are asked is stored once, what each answers is about as large
        self.storage.check_room(max(sizes, default=0) + sum(sizes))
        for message in signed:
            sign(message, self.signing_key)
        ids = list(self.push_messages(signed))
        return {name: message for name, message in zip(ids, signed, strict=True) if name}

    def guard_storage(self) -> None:
        """Delete what nobody was asked for, turn out who stores too much, end before it is full.

        Raises
        ------
        FederationError
            If the disk of the SuperLink's database has no room any more.
        """
        questions: set[str] = set()
        answers: dict[str, int] = {}
        most: dict[int, int] = {}
        for inquiry in list(self._inquiries):
            questions |= inquiry.questions
            answers |= inquiry.arriving
            for node, room in inquiry.rooms.items():
                most[node] = max(int(room * _FORGIVEN), most.get(node, 0))
        unwanted = find_unwanted(self.storage.messages(), questions, answers, most)
        for node, size in unwanted.sites.items():
            reason = f"stored {size} bytes at the server, of an answer of at most {most[node]}"
            self.admission.turn_out(node, reason)
        for message in unwanted.messages:
            self.forget(message)
        self.storage.check_room(0)

    def forget(self, message: str) -> None:
        """Let the SuperLink delete a message; if it cannot now, it does when the run ends."""
        with contextlib.suppress(httpx.HTTPError):
            self.impatient.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(
                    node=self.node, run_id=self.run.run_id, message_object_id=message
                )
            )
