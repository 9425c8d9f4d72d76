"""Sites on other machines, asked one question each until they have answered or refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from nnunetv2_federated.federation.errors import RoundError, SiteError
from nnunetv2_federated.flower.records import CONFIG, NOT_YET, pack_payload, unpack_payload


class _Named(Protocol):
    @property
    def site(self) -> str: ...


Answer = TypeVar("Answer", bound=_Named)

LOOK_SECONDS = 0.5
_ASK_AGAIN_SECONDS = 5.0
_ANSWER_SECONDS = 900.0
"""A site builds its trainer before it answers."""


class RollCall(Generic[Answer]):
    """Who of the expected sites is there, and what each answered.

    Parameters
    ----------
    grid
        Reaches the nodes, and knows the sites by their keys (``site_names``).
    sites
        Who is expected.
    query
        Name of the question.
    question
        Returns its payload for a site.
    read
        Reads the answer of a site; ``SiteError`` refuses it.
    say
        Told who takes part, and who does not and why.
    """

    def __init__(
        self,
        grid: Grid,
        sites: Sequence[str],
        query: str,
        *,
        question: Callable[[str], str],
        read: Callable[[str], Answer],
        say: Callable[[str], None],
    ) -> None:
        self.answers: dict[int, Answer] = {}
        """By node, in the order of the sites' names."""
        self._grid = grid
        self._sites = sites
        self._query = query
        self._question = question
        self._read = read
        self._say = say
        self._refused: dict[str, str] = {}
        self._ask_again: dict[int, float] = {}
        self._last_said: dict[str, str] = {}

    def wait(self, needed: int, seconds: float, remedy: str) -> None:
        """Wait until all sites have answered or refused.

        They may come late: it is enough that ``needed`` of them are there when the time is over.

        Raises
        ------
        RoundError
            If too few sites are there in time; names the others and what they said.
        """
        self._say(f"waiting for {', '.join(self._sites)}")
        end = time.monotonic() + seconds
        while len(self.answers) + len(self._refused) < len(self._sites):
            self.look()
            possible = len(self._sites) - len(self._refused)
            if time.monotonic() > end or possible < needed:
                break
            time.sleep(LOOK_SECONDS)
        if len(self.answers) < needed:
            raise RoundError(
                f"{len(self.answers)} of {len(self._sites)} sites take part, {needed} are "
                f"required ({remedy}). {self._absent()}"
            )
        if len(self.answers) < len(self._sites):
            self._say(f"beginning without all sites. {self._absent()}")

    def look(self) -> None:
        """Ask nodes that are new, or have not agreed yet."""
        now = time.monotonic()
        known: Mapping[int, str] = getattr(self._grid, "site_names", dict)()
        asked = {
            node: name
            for node, name in known.items()
            if name in self._sites  # who has another key is a stranger
            and node not in self.answers
            and name not in self._refused
            and self._ask_again.get(node, 0.0) <= now
        }
        questions = []
        for node, name in asked.items():
            self._ask_again[node] = now + _ASK_AGAIN_SECONDS
            content = RecordDict({CONFIG: pack_payload(self._question(name))})
            questions.append(Message(content, node, f"query.{self._query}"))
        for answer in self._grid.send_and_receive(questions, timeout=_ANSWER_SECONDS):
            node = answer.metadata.src_node_id
            if answer.has_error():
                again = answer.error.code == NOT_YET
                self._refuse(asked[node], answer.error.reason or "failed", again=again)
                continue
            try:
                self._enter(node, asked[node], self._read(unpack_payload(answer.content)))
            except SiteError as error:
                self._refuse(asked[node], str(error), again=False)

    def _enter(self, node: int, name: str, answer: Answer) -> None:
        if answer.site != name:
            raise SiteError(f"the key of {name} was used by a site that calls itself {answer.site}")
        entered = {**self.answers, node: answer}
        self.answers = dict(sorted(entered.items(), key=lambda item: item[1].site))
        self._say(f"{name} takes part")

    def _absent(self) -> str:
        here = {answer.site for answer in self.answers.values()}
        return "; ".join(
            f"{name}: {self._refused.get(name, 'not connected, or not approved there yet')}"
            for name in self._sites
            if name not in here
        )

    def _refuse(self, name: str, reason: str, *, again: bool) -> None:
        """Do without a site, or ask it again later; say why, once."""
        if not again:
            self._refused[name] = reason
        if self._last_said.get(name) != reason:
            self._last_said[name] = reason
            self._say(f"{name}: {reason}")
