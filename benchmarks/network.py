"""What a round costs beside the training when the site is a process of its own, over TLS.

``python benchmarks/network.py`` starts a SuperLink and sites on loopback that answer at once with a
vector as long as what they got, and prints seconds a round: signing, sending, checking, answering,
receiving, with no training in it.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import socket
import tempfile
import time
from pathlib import Path

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.server.credentials import provision
from nnunetv2_federated.flower.deployment.server.network_grid import NetworkGrid
from nnunetv2_federated.flower.deployment.server.superlink import SuperLink
from nnunetv2_federated.flower.deployment.signing import (
    load_signing_key,
    load_verifying_key,
    verify,
)
from nnunetv2_federated.flower.deployment.site.inbox import Inbox
from nnunetv2_federated.flower.deployment.site.site_file import SiteSettingsFile
from nnunetv2_federated.flower.deployment.site.supernode import SuperNode
from nnunetv2_federated.flower.records import ARRAYS, pack_reply, pack_weights, unpack_weights

PARAMETERS = 33_000_000


def answer(dtype: str, message: Message, context: Context) -> Message:
    """Do to the weights what a site does, but for the training."""
    del context
    received = unpack_weights(message.content, dtype)
    packed = pack_reply(received + np.float32(1e-3), received, dtype)
    return Message(RecordDict({ARRAYS: packed}), reply_to=message)


def site(folder: Path, server: Address, dtype: str) -> None:
    """Answer until killed."""
    settings = SiteSettingsFile(
        folder.name,
        server,
        folder / "ca.crt",
        folder / "site.key",
        folder / "coordinator.pub",
        folder / "work",
    )
    coordinator = load_verifying_key(settings.coordinator)
    app = ClientApp()
    app.train()(functools.partial(answer, dtype))
    with SuperNode(
        server,
        settings.load_key(),
        settings.load_authority(),
        Inbox(settings.work / "inbox"),
        max_bytes=2**31,
    ) as supernode:
        for message in supernode.messages():
            verify(message, coordinator)
            supernode.answer(
                app(message, Context(message.metadata.run_id, 0, {}, RecordDict(), {}))
            )


def measure(grid: NetworkGrid, vector: np.ndarray, dtype: str, rounds: int) -> list[float]:
    """Return the seconds of each round."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        weights = pack_weights(vector, dtype)
        questions = [
            Message(RecordDict({ARRAYS: weights}), node, "train") for node in grid.get_node_ids()
        ]
        for reply in grid.send_and_receive(questions, timeout=600):
            unpack_weights(reply.content, dtype)
        seconds.append(time.perf_counter() - started)
    return seconds


def main() -> None:
    """Print a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parameters", type=int, default=PARAMETERS)
    parser.add_argument("--transport-dtype", default="float32")
    parser.add_argument("--superlink-database", type=Path)
    options = parser.parse_args()
    dtype = options.transport_dtype
    names = [f"site_{number}" for number in range(options.sites)]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Address("localhost", int(listener.getsockname()[1]))
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base)
        provision(folder, server, names)
        credentials = folder / "server"
        link = SuperLink(folder / "link", credentials, server, options.superlink_database)
        link.start()
        processes = []
        try:
            link.register(names)
            grid = link.acquire_run(load_signing_key(credentials / "coordinator.key"))
            heartbeat = link.keep_alive(grid)
            spawn = multiprocessing.get_context("spawn")
            for name in names:
                arguments = (folder / "sites" / name, server, dtype)
                processes.append(spawn.Process(target=site, args=arguments, daemon=True))
                processes[-1].start()
            while len(list(grid.get_node_ids())) < len(names):
                time.sleep(0.2)
            vector = np.random.default_rng(0).standard_normal(options.parameters, np.float32)
            seconds = measure(grid, vector, dtype, options.rounds)
            link.finish(grid, None)
            heartbeat.stop()
        finally:
            for process in processes:
                process.kill()
                process.join()
            link.stop()
            link.delete_database()
    print(
        f"{options.parameters:,} parameters, {dtype}, {len(names)} sites: median "
        f"{np.median(seconds):.1f} s a round ({', '.join(f'{s:.1f}' for s in seconds)})"
    )


if __name__ == "__main__":
    main()
