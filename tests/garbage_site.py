"""A site that answers its rounds with garbage of every kind, or too slowly; give its site.toml."""

from __future__ import annotations

import functools
import itertools
import sys
import threading
import time
from pathlib import Path

import flwr.app
import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import add_header_to_object_body

from nnunetv2_federated.flower.deployment.site import serve as site
from nnunetv2_federated.flower.deployment.site import supernode as fleet
from nnunetv2_federated.flower.deployment.site.desk import Desk
from nnunetv2_federated.flower.deployment.site.site_file import read_site_file
from nnunetv2_federated.flower.records import ARRAYS, CONFIG, pack_payload, pack_weights


def truncated(record: ArrayRecord) -> ArrayRecord:
    array = next(iter(record.values()))
    return ArrayRecord({"weights": Array(array.dtype, array.shape, array.stype, array.data[:-100])})


class ConfigRecord(flwr.app.ConfigRecord):
    """Under Flower's own name what it cannot read."""

    def deflate(self) -> bytes:
        return add_header_to_object_body(b"\xff", self)


def forged(reply: Message) -> Message:
    """Let its content come from another node than its envelope."""

    def deflate() -> bytes:
        metadata = vars(reply.metadata)
        own = metadata["_src_node_id"]
        metadata["_src_node_id"] = own + 1
        try:
            return Message.deflate(reply)
        finally:
            metadata["_src_node_id"] = own

    reply.deflate = deflate
    return reply


def many_parts() -> ArrayRecord:
    return ArrayRecord({str(i): Array(np.array([i], np.float32)) for i in range(1000)})


def spoil(kind: str, content: RecordDict) -> RecordDict:
    weights = next(iter(content[ARRAYS].values())).numpy()
    if kind == "nan":
        weights = weights.copy()
        weights[7] = np.nan
    spoiled = {
        "short": lambda: {ARRAYS: pack_weights(weights[:-1])},
        "long": lambda: {ARRAYS: pack_weights(np.tile(weights, 2))},
        "huge": lambda: {ARRAYS: pack_weights(np.resize(weights, 20_000_000))},
        "nan": lambda: {ARRAYS: pack_weights(weights)},
        "float16": lambda: {ARRAYS: pack_weights(weights, "float16")},
        "truncated": lambda: {ARRAYS: truncated(content[ARRAYS])},
        "no payload": lambda: {CONFIG: pack_payload("{")},
        "unreadable": lambda: {CONFIG: ConfigRecord()},
        "forged": dict,
        "parts": lambda: {ARRAYS: many_parts()},
        "slow": dict,
    }
    return RecordDict({**content, **spoiled[kind]()})


KINDS = (
    *("short", "long", "huge", "nan", "float16", "truncated"),
    *("no payload", "unreadable", "forged", "parts", "slow"),
)
SLOW_SECONDS = 40


def main() -> None:
    settings = read_site_file(Path(sys.argv[1]))
    desk = Desk(settings.name, "901", settings.work, "cpu", ask=bool)
    say = functools.partial(print, flush=True)
    honest, kinds = site.Clerk.answer, itertools.chain(KINDS, itertools.repeat("nan"))
    push, slow = fleet.push_objects, threading.Event()

    def push_slowly(*arguments, **options) -> None:
        if slow.is_set():
            slow.clear()
            time.sleep(SLOW_SECONDS)
        push(*arguments, **options)

    def answer(clerk: site.Clerk, message: Message) -> Message:
        reply = honest(clerk, message)
        if message.metadata.message_type == "train" and reply.has_content():
            kind = next(kinds)
            reply.content = spoil(kind, reply.content)
            if kind == "slow":
                slow.set()
            return forged(reply) if kind == "forged" else reply
        return reply

    site.Clerk.answer = answer
    fleet.push_objects = push_slowly
    site.serve(settings, desk, say, threading.Event())


if __name__ == "__main__":
    main()
