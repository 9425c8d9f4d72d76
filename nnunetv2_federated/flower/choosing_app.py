"""What a site answers when the best configuration is chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from nnunetv2_federated.federation.choosing import ChoiceOffer, ChoiceProposal, ScoreTask
from nnunetv2_federated.federation.messages import FullValidation
from nnunetv2_federated.flower.records import reply, unpack_payload

CHOICE, SCORE = "choice", "score"
"""Names of the two questions, in their order."""
_READER = "site"


class Chooses(Protocol):
    """A site that measures the predictions it kept."""

    def offer(self, proposal: ChoiceProposal) -> ChoiceOffer:
        """Agree to a choice."""
        ...

    def score(self, task: ScoreTask) -> FullValidation:
        """Measure a candidate."""
        ...


def add_choosing(app: ClientApp, find: Callable[[Context], Chooses]) -> None:
    """Let an app answer the two questions of a choice.

    Parameters
    ----------
    app
        App of a site.
    find
        Returns the site that a context is about.
    """

    @app.query(CHOICE)
    def choice(message: Message, context: Context) -> Message:
        proposal = ChoiceProposal.from_json(unpack_payload(message.content, _READER))
        return reply(message, find(context).offer(proposal).to_json())

    @app.query(SCORE)
    def score(message: Message, context: Context) -> Message:
        task = ScoreTask.from_json(unpack_payload(message.content, _READER))
        return reply(message, find(context).score(task).to_json())
