"""What a federation needs of a Grid beyond Flower's own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Protocol, runtime_checkable

from flwr.app import Message
from flwr.serverapp import Grid


@runtime_checkable
class SiteGrid(Protocol):
    """A Grid of this package's own: in process, or over a network."""

    @property
    def sequential(self) -> bool:
        """Whether one site works after another, so that their times add up."""


class Inquiry(Protocol):
    """Questions to nodes; looking for answers waits for nobody."""

    def send(self, questions: Iterable[Message]) -> None:
        """Send more questions."""

    def look(self) -> Iterator[Message]:
        """Yield each answer that is complete now, or the error that is in its place."""

    def give_up(self, nodes: Collection[int]) -> None:
        """Take no answer of these nodes any more."""


@runtime_checkable
class RemoteGrid(SiteGrid, Protocol):
    """A Grid that reaches sites on other machines."""

    def site_names(self) -> Mapping[int, str]:
        """Return the names of the connected sites, by node."""

    def inquiry(self, seconds: float) -> Inquiry:
        """Return an inquiry, for questions that wait so many seconds for an answer."""


def works_in_turn(grid: Grid) -> bool:
    """Whether a Grid lets one site work after another; Flower's own ask all at once."""
    return isinstance(grid, SiteGrid) and grid.sequential
