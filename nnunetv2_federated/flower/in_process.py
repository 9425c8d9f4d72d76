"""A Grid that runs the client app in this process, one site after another.

``TaskIdentity`` is internal to Flower: without it no ``Message`` can be built outside a runtime.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Iterator

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run as FlowerRun
from flwr.supercore.task_identity import TaskIdentity

from nnunetv2_federated.federation.disk import NO_ROOM
from nnunetv2_federated.federation.errors import FederationError
from nnunetv2_federated.flower.records import SITE_FAILED

logger = logging.getLogger(__name__)

_SERVER_NODE = 1
_RUN_ID = 1


class InProcessGrid(Grid):
    """Deliver each message when its reply is asked for.

    Replies come in the order of the messages, and the next site starts only when the reply before
    was taken: at most one reply is in memory.

    Parameters
    ----------
    client_app
        App that every site runs.
    num_sites
        Number of sites. They get node ids from 2 on and, as ``partition-id``, their index from 0.
    run_config
        Run configuration of every context.
    """

    def __init__(self, client_app: ClientApp, num_sites: int, run_config: dict[str, str]) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, _RUN_ID, _SERVER_NODE
        self._app = client_app
        self._contexts = {
            _SERVER_NODE + 1 + index: Context(
                run_id=_RUN_ID,
                node_id=_SERVER_NODE + 1 + index,
                node_config={"partition-id": index, "num-partitions": num_sites},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for index in range(num_sites)
        }
        self._waiting: dict[str, Message] = {}

    @property
    def sequential(self) -> bool:
        """Whether one site works after another: it does, in the order of the messages."""
        return True

    def set_run(self, run: FlowerRun) -> None:
        """Refuse: this grid has one run, its own."""
        raise NotImplementedError("an in-process grid has one run, its own")

    @property
    def run(self) -> FlowerRun:
        """The run of this grid, which has nothing to tell."""
        return FlowerRun.create_empty(run_id=_RUN_ID)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message; ``Message(...)`` does the same."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Node ids of all sites."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages; they are delivered by :meth:`pull_messages`."""
        ids = []
        for message in messages:
            ids.append(uuid.uuid4().hex)
            self._waiting[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Deliver messages and yield the replies, one at a time."""
        for message_id in message_ids:
            yield self._deliver(self._waiting.pop(message_id))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Deliver messages and yield the replies, one at a time; nothing can time out here."""
        del timeout
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, message: Message) -> Message:
        context = self._contexts[message.metadata.dst_node_id]
        try:
            return self._app(message, context)
        except Exception as error:  # the server decides what one site's failure means
            logger.debug("a site failed", exc_info=True)
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise  # no site's failure: the disk is the server's, too
            known = isinstance(error, FederationError)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            return Message(Error(SITE_FAILED, reason), reply_to=message)
