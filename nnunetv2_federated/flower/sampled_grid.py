"""A round's sites as Flower's strategies expect them: behind a Grid."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Message
from flwr.serverapp import Grid


class SampledGrid(Grid):
    """Shows an inner strategy only the sites of this round, and does nothing else."""

    def __init__(self, node_ids: list[int]) -> None:
        self._node_ids = node_ids

    def get_node_ids(self) -> Iterable[int]:
        """Node ids of the round's sites."""
        return self._node_ids

    def set_run(self, run: object) -> None:
        """Refuse."""
        raise NotImplementedError

    @property
    def run(self) -> object:  # type: ignore[override]
        """Refuse."""
        raise NotImplementedError

    def create_message(self, *args: object, **kwargs: object) -> Message:
        """Refuse."""
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Refuse."""
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Refuse."""
        raise NotImplementedError

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Refuse."""
        raise NotImplementedError
