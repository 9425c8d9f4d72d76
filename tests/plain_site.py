"""A site without nnU-Net: answers each question with its own content, in a process of its own.

``python plain_site.py site.toml [MANNER]``: ``silent`` keeps its questions to itself, ``hoard``
fills the SuperLink with an answer of which the server can never read the first part, ``forge`` with
a question that looks like the server's.
"""

from __future__ import annotations

import sys
import time
import tomllib
from pathlib import Path
from typing import cast

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)

from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.keyfiles import SITE_KEY, read_secret
from nnunetv2_federated.flower.deployment.site.inbox import Inbox
from nnunetv2_federated.flower.deployment.site.retry import LostError
from nnunetv2_federated.flower.deployment.site.supernode import SuperNode

MANY_BYTES = 110_000_000


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def much(seed: int) -> RecordDict:
    """Return much content; the SuperLink keeps equal parts of two sites once, so give a seed."""
    numbers = np.random.default_rng(seed).integers(0, 256, MANY_BYTES, np.uint8)
    return RecordDict({"much": ArrayRecord({"much": Array(numbers)})})


def fill(supernode: SuperNode, message: Message, *, leave_out_first: bool) -> None:
    """Send a message's parts, but perhaps for the first that the server asks for."""
    message.metadata.__dict__["_message_id"] = message.object_id
    tree, objects = get_object_tree(message), get_all_nested_objects(message)
    response = supernode._client.PushMessages(
        PushMessagesRequest(
            node=supernode._node,
            messages_list=[message_to_proto(remove_content_from_message(message))],
            message_object_trees=[tree],
            clientapp_runtime_list=[0.0],
        )
    )
    first = next(part.object_id for part in iterate_object_tree(tree))
    for name, part in objects.items():
        if name == first and leave_out_first:
            continue
        supernode._client.PushObject(
            PushObjectRequest(
                node=supernode._node,
                run_id=message.metadata.run_id,
                object_id=name,
                object_content=part.deflate(),
                session_id=response.session_id,
            )
        )
    say("filled")


def answer(supernode: SuperNode, question: Message, manner: str) -> None:
    if manner == "hoard":
        fill(supernode, Message(much(1), reply_to=question), leave_out_first=True)
    elif manner == "forge":
        forged = Message(much(2), question.metadata.dst_node_id, "query.x")
        forged.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
        fill(supernode, forged, leave_out_first=False)
    elif manner != "silent":
        supernode.answer(Message(question.content, reply_to=question))


def main(site_file: Path, manner: str) -> None:
    folder = site_file.parent
    server = Address.of(tomllib.loads(site_file.read_text())["server"])
    key = cast(EllipticCurvePrivateKey, load_ssh_private_key(read_secret(folder / SITE_KEY), None))
    authority = (folder / "ca.crt").read_bytes()
    while True:
        supernode = SuperNode(
            server, key, authority, Inbox(folder / "work" / "inbox"), max_bytes=10**9
        )
        try:
            with supernode:
                for question in supernode.messages():
                    say(f"asked {question.metadata.message_type}")
                    answer(supernode, question, manner)
        except LostError as error:
            say(str(error))
            time.sleep(0.5)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "honest")
