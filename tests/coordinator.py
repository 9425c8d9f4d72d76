"""A coordinator with the right key, who asks one site whatever it likes."""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from nnunetv2_federated.federation.messages import TrainTask
from nnunetv2_federated.federation.proposals import Proposal
from nnunetv2_federated.flower.deployment.signing import sign
from nnunetv2_federated.flower.deployment.site.guarded_site import GuardedSite
from nnunetv2_federated.flower.deployment.site.serve import Responder
from nnunetv2_federated.flower.records import ARRAYS, CONFIG, pack_payload, pack_weights


class Coordinator:
    """Signs whatever it likes."""

    def __init__(self, guarded: GuardedSite) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.said: list[str] = []
        self.responder = Responder(guarded, self.key.public_key(), self.said.append)
        self.last: Message | None = None

    def message(self, kind: str, payload: str, weights: Any = None) -> Message:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 7
        content = RecordDict({CONFIG: pack_payload(payload)})
        if weights is not None:
            content[ARRAYS] = pack_weights(weights)
        message = Message(content, 7, kind)
        sign(message, self.key)
        return message

    def send(self, message: Message) -> Message:
        answer = self.responder.answer(message)
        self.responder.answered()
        return answer

    def ask(self, kind: str, payload: str, weights: Any = None) -> Message:
        return self.send(self.message(kind, payload, weights))

    def join(self, proposal: Proposal) -> Message:
        return self.ask("query.join", proposal.to_json())

    def train(self, task: TrainTask, weights: Any) -> Message:
        return self.ask("train", task.to_json(), weights)


def refusal(answer: Message) -> str:
    assert answer.has_error(), "answered"
    reason = answer.error.reason
    assert reason is not None
    assert "\n" not in reason
    assert "/" not in reason
    return reason
