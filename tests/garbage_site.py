"""A site that answers its rounds with garbage of every kind, or too slowly; give its site.toml."""

from __future__ import annotations

import functools
import itertools
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flwr.app
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import add_header_to_object_body
from flwr.supercore.inflatable.inflatable_utils import push_objects

from nnunetv2_federated.flower.deployment.site import serve as site
from nnunetv2_federated.flower.deployment.site import supernode
from nnunetv2_federated.flower.deployment.site.guarded_site import GuardedSite
from nnunetv2_federated.flower.deployment.site.local_site import LocalSite
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

    setattr(reply, "deflate", deflate)  # noqa: B010  # mypy: it replaces a method
    return reply


def many_parts() -> ArrayRecord:
    return ArrayRecord({str(i): Array(np.array([i], np.float32)) for i in range(1000)})


def spoil(kind: str, content: RecordDict) -> RecordDict:
    arrays = content.array_records[ARRAYS]
    weights = next(iter(arrays.values())).numpy()
    if kind == "nan":
        weights = weights.copy()
        weights[7] = np.nan
    spoiled: dict[str, Callable[[], dict[str, ArrayRecord | MetricRecord | flwr.app.ConfigRecord]]]
    spoiled = {
        "short": lambda: {ARRAYS: pack_weights(weights[:-1])},
        "long": lambda: {ARRAYS: pack_weights(np.tile(weights, 2))},
        "huge": lambda: {ARRAYS: pack_weights(np.resize(weights, 20_000_000))},
        "nan": lambda: {ARRAYS: pack_weights(weights)},
        "float16": lambda: {ARRAYS: pack_weights(weights, "float16")},
        "truncated": lambda: {ARRAYS: truncated(arrays)},
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
    guarded = GuardedSite(LocalSite(settings.name, "901", settings.work, "cpu"), ask=bool)
    say = functools.partial(print, flush=True)
    honest, kinds = site.Responder.answer, itertools.chain(KINDS, itertools.repeat("nan"))
    slow = threading.Event()

    def push_slowly(*arguments: Any, **options: Any) -> None:
        if slow.is_set():
            slow.clear()
            time.sleep(SLOW_SECONDS)
        push_objects(*arguments, **options)

    def answer(responder: site.Responder, message: Message) -> Message:
        reply = honest(responder, message)
        if message.metadata.message_type == "train" and reply.has_content():
            kind = next(kinds)
            reply.content = spoil(kind, reply.content)
            if kind == "slow":
                slow.set()
            return forged(reply) if kind == "forged" else reply
        return reply

    # setattr, as mypy lets no method and no imported name be replaced
    setattr(site.Responder, "answer", answer)  # noqa: B010
    setattr(supernode, "push_objects", push_slowly)  # noqa: B010
    site.serve(settings, guarded, say, threading.Event())


if __name__ == "__main__":
    main()
