"""Answers of sites, one by one: what goes wrong over one answer is that site's failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.flower.records import reading, unpack_payload

Answer = TypeVar("Answer")


def read_answer(reply: Message, read: Callable[[str], Answer]) -> Answer:
    """Return what a site answered.

    Parameters
    ----------
    reply
        Of the site, or the error in its place.
    read
        Returns what the payload says, checked.

    Raises
    ------
    SiteError
        If the site failed or its answer cannot be used, whatever it is.
    """
    if reply.has_error():
        raise SiteError(clean(reply.error.reason or "failed"))
    with reading("its answer"):
        return read(unpack_payload(reply.content))


def ask(
    grid: Grid, questions: Sequence[Message], read: Callable[[str], Answer], seconds: float
) -> Iterator[tuple[int, Answer | SiteError]]:
    """Ask nodes at the same time; yield what each answered as it comes, or why it did not.

    Parameters
    ----------
    grid
        Reaches the nodes.
    questions
        One to each node.
    read
        Returns what a payload says, checked.
    seconds
        How long to wait.

    Yields
    ------
    tuple of int and (Answer or SiteError)
        The node, and what it answered or what is wrong; each node once.
    """
    silent = {question.metadata.dst_node_id for question in questions}
    for reply in grid.send_and_receive(questions, timeout=seconds):
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
