"""One question to many sites: what goes wrong over an answer is that site's failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.federation.text import both_ends
from nnunetv2_federated.flower.records import reading, unpack_payload

Answer = TypeVar("Answer")


def read_answer(reply: Message, read: Callable[[str], Answer]) -> Answer:
    """Return what a site answered.

    Parameters
    ----------
    reply
        Answer of the site, or the error in its place.
    read
        Checks the payload of an answer and returns what it says.

    Raises
    ------
    SiteError
        If the site failed or its answer cannot be used, whatever it is.
    """
    if reply.has_error():
        raise SiteError(both_ends(reply.error.reason or "failed"))
    with reading("its answer"):
        return read(unpack_payload(reply.content))


def ask(
    grid: Grid,
    kind: str,
    questions: Mapping[int, RecordDict],
    read: Callable[[str], Answer],
    seconds: float,
) -> Iterator[tuple[int, Answer | SiteError]]:
    """Ask nodes at the same time; yield each answer as it comes, or why there is none.

    Parameters
    ----------
    grid
        Reaches the nodes.
    kind
        Type of the messages, such as ``query.describe``.
    questions
        Content of the message to each node.
    read
        Checks the payload of an answer and returns what it says.
    seconds
        How long to wait for all answers.

    Yields
    ------
    tuple of int and (Answer or SiteError)
        The node, and its answer or what is wrong; each node once.
    """
    silent = set(questions)
    messages = [Message(content, node, kind) for node, content in questions.items()]
    for reply in grid.send_and_receive(messages, timeout=seconds):
        node = reply.metadata.src_node_id
        if node not in silent:
            continue
        silent.remove(node)
        try:
            answer: Answer | SiteError = read_answer(reply, read)
        except SiteError as error:
            answer = error
        yield node, answer
    for node in sorted(silent):
        yield node, SiteError("no answer in time")


def ask_all(
    grid: Grid,
    kind: str,
    questions: Mapping[int, RecordDict],
    read: Callable[[str], Answer],
    seconds: float,
    *,
    refusal: Callable[[int, str], str],
) -> dict[int, Answer]:
    """Ask nodes of which each must answer.

    Parameters
    ----------
    grid, kind, questions, read, seconds
        As :func:`ask` takes them.
    refusal
        Returns the text of the error, from a node and what is wrong with its answer.

    Returns
    -------
    dict
        Answers by node, in the order of the nodes.

    Raises
    ------
    SiteError
        For the first node that fails or is silent.
    """
    answers: dict[int, Answer] = {}
    for node, answer in ask(grid, kind, questions, read, seconds):
        if isinstance(answer, SiteError):
            raise SiteError(refusal(node, str(answer))) from answer
        answers[node] = answer
    return dict(sorted(answers.items()))


def ask_sites(
    grid: Grid,
    names: Mapping[int, str],
    query: str,
    read: Callable[[str], Answer],
    seconds: float,
    *,
    content: RecordDict,
) -> dict[int, Answer]:
    """Ask all sites the same; the error names the first that fails or is silent.

    Parameters
    ----------
    grid, read, seconds
        As :func:`ask` takes them.
    names
        Name of each site, by node.
    query
        Name of the question.
    content
        Content of the message.

    Returns
    -------
    dict
        Answers by node, in the order of the nodes.

    Raises
    ------
    SiteError
        For the first site that fails or is silent.
    """

    def refusal(node: int, reason: str) -> str:
        site = f"site {names[node]}"
        named = reason if reason.startswith(site) else f"{site}: {reason}"
        return f"{named} ({query})"

    questions = {node: RecordDict(dict(content)) for node in names}
    return ask_all(grid, f"query.{query}", questions, read, seconds, refusal=refusal)
