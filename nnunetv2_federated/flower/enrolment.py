"""Sites on other machines, asked one question each until they have answered or refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from flwr.app import Message

from nnunetv2_federated.federation.errors import RoundError, SiteError
from nnunetv2_federated.flower.asking import read_answer
from nnunetv2_federated.flower.records import NOT_YET, pack_content, reading
from nnunetv2_federated.flower.site_grid import RemoteGrid


class _Named(Protocol):
    @property
    def site(self) -> str: ...


Answer = TypeVar("Answer", bound=_Named)

LOOK_SECONDS = 0.5
_ASK_AGAIN_SECONDS = 5.0
ANSWER_SECONDS = 900.0
"""How long a site may take to answer; it builds its trainer first."""


@dataclass(frozen=True)
class _Asked:
    """A site that was asked and has not answered."""

    name: str
    at: float
    """When it was asked (``time.monotonic``)."""


class Enrolment(Generic[Answer]):
    """Which of the expected sites take part, and what each answered when it was asked to.

    A question stays open from look to look, so that nobody waits for a site that says nothing. It
    is given up after :data:`ANSWER_SECONDS`, and the site asked again.

    Parameters
    ----------
    grid
        Reaches the sites, and knows them by their keys.
    sites
        Names of the sites that are expected.
    query
        Name of the question.
    question
        Returns the payload of the question for a site.
    read
        Reads the answer of a site; ``SiteError`` refuses it.
    say
        Called with one line about each site that takes part, or does not and why.
    """

    def __init__(
        self,
        grid: RemoteGrid,
        sites: Sequence[str],
        query: str,
        *,
        question: Callable[[str], str],
        read: Callable[[str], Answer],
        say: Callable[[str], None],
    ) -> None:
        self.answers: dict[int, Answer] = {}
        """Answers by node, in the order of the sites' names."""
        self._grid = grid
        self._sites = sites
        self._query = query
        self._question = question
        self._read = read
        self._say = say
        self._inquiry = grid.inquiry(ANSWER_SECONDS)
        self._open: dict[int, _Asked] = {}
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
        """Ask nodes that are new or have not agreed yet; take the answers that have come."""
        now = time.monotonic()
        self._inquiry.send(self._questions(now))
        for reply in self._inquiry.look():
            node = reply.metadata.src_node_id
            asked = self._open.pop(node, None)
            if asked is not None:
                self._take(node, asked.name, reply)
        for node, asked in list(self._open.items()):
            if now - asked.at > ANSWER_SECONDS:
                self._inquiry.give_up({node})
                del self._open[node]
                reason = f"no answer to {self._query} within {ANSWER_SECONDS:.0f} s"
                self._refuse(asked.name, reason, again=True)

    def _questions(self, now: float) -> list[Message]:
        questions = []
        for node, name in self._grid.site_names().items():
            expected = name in self._sites
            done = node in self.answers or name in self._refused
            waits = node in self._open or self._ask_again.get(node, 0.0) > now
            if not expected or done or waits:
                continue
            self._open[node] = _Asked(name, now)
            self._ask_again[node] = now + _ASK_AGAIN_SECONDS
            content = pack_content(self._question(name))
            questions.append(Message(content, node, f"query.{self._query}"))
        return questions

    def _take(self, node: int, name: str, reply: Message) -> None:
        try:
            answer = read_answer(reply, self._read)
            with reading("its answer"):
                self._enter(node, name, answer)
        except SiteError as error:
            again = reply.has_error() and reply.error.code == NOT_YET
            self._refuse(name, str(error), again=again)

    def _enter(self, node: int, name: str, answer: Answer) -> None:
        if answer.site != name:
            raise SiteError(f"the key of {name} was used by a site that calls itself {answer.site}")
        entered = {**self.answers, node: answer}
        self.answers = dict(sorted(entered.items(), key=lambda item: item[1].site))
        self._say(f"{name} takes part")

    def _absent(self) -> str:
        here = {answer.site for answer in self.answers.values()}
        why = {asked.name: "asked, and silent" for asked in self._open.values()}
        why |= self._last_said
        return "; ".join(
            f"{name}: {why.get(name, 'not connected')}" for name in self._sites if name not in here
        )

    def _refuse(self, name: str, reason: str, *, again: bool) -> None:
        """Do without a site, or ask it again later; say why, once."""
        if not again:
            self._refused[name] = reason
        if self._last_said.get(name) != reason:
            self._last_said[name] = reason
            self._say(f"{name}: {reason}")
