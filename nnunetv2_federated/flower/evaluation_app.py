"""What a site answers when trained models are evaluated; the same in every runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from nnunetv2_federated.federation.aggregation import Vector
from nnunetv2_federated.federation.evaluation import (
    EvaluationOffer,
    EvaluationProposal,
    MeasureTask,
    SiteEvaluation,
    WeightsReceipt,
    WeightsTask,
)
from nnunetv2_federated.flower.records import reply, unpack_payload, unpack_weights

OFFER, WEIGHTS, MEASURE = "evaluation", "weights", "measure"
"""Names of the three questions, in their order."""
_READER = "site"


class Evaluates(Protocol):
    """A site that evaluates what it agreed to."""

    def offer(self, proposal: EvaluationProposal) -> EvaluationOffer:
        """Agree to an evaluation."""
        ...

    def receive(self, task: WeightsTask, vector: Vector) -> WeightsReceipt:
        """Keep the weights of one fold."""
        ...

    def measure(self, task: MeasureTask) -> SiteEvaluation:
        """Evaluate, once all weights are there."""
        ...


def add_evaluation(app: ClientApp, find: Callable[[Context], Evaluates]) -> None:
    """Let an app answer the three questions of an evaluation.

    Parameters
    ----------
    app
        App of a site.
    find
        Returns the site that a context is about.
    """

    @app.query(OFFER)
    def offer(message: Message, context: Context) -> Message:
        proposal = EvaluationProposal.from_json(unpack_payload(message.content, _READER))
        return reply(message, find(context).offer(proposal).to_json())

    @app.query(WEIGHTS)
    def weights(message: Message, context: Context) -> Message:
        task = WeightsTask.from_json(unpack_payload(message.content, _READER))
        receipt = find(context).receive(task, unpack_weights(message.content))
        return reply(message, receipt.to_json())

    @app.query(MEASURE)
    def measure(message: Message, context: Context) -> Message:
        task = MeasureTask.from_json(unpack_payload(message.content, _READER))
        return reply(message, find(context).measure(task).to_json())
