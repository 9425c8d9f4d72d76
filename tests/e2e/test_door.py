"""Who is let in at the door of a real SuperLink, and who is not."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from consortium import free_port, wait_for
from flwr.app import ConfigRecord, Message, RecordDict

from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.server.credentials import provision, revoke
from nnunetv2_federated.flower.deployment.server.network_grid import NetworkGrid
from nnunetv2_federated.flower.deployment.server.serve import ServerSettings, open_grid
from nnunetv2_federated.flower.records import ARRAYS, pack_weights

pytestmark = [pytest.mark.deployment, pytest.mark.versions]

PLAIN_SITE = Path(__file__).parents[1] / "plain_site.py"


@contextmanager
def site(credentials: Path, name: str, *arguments: str) -> Iterator[Path]:
    """Run a site; yield the file with what it says."""
    out = credentials / f"{name}.out"
    with out.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, PLAIN_SITE, credentials / "sites" / name / "site.toml", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        yield out
    finally:
        process.terminate()
        process.wait(20)
        sys.stdout.write(out.read_text())


@contextmanager
def grid_of(credentials: Path, listen: Address, *sites: str) -> Iterator[NetworkGrid]:
    server = ServerSettings(credentials / "server", listen)
    with open_grid(credentials / "link", server, sites, say=lambda _: None) as grid:
        yield grid


def ask(grid: NetworkGrid, *nodes: int, content: RecordDict | None = None) -> dict[int, Message]:
    questions = [Message(content or RecordDict(), node, "query.x") for node in nodes]
    answers = grid.send_and_receive(questions, timeout=60)
    return {answer.metadata.src_node_id: answer for answer in answers}


def test_a_site_that_is_revoked_is_left_out_from_the_next_message_on(tmp_path: Path) -> None:
    """While its answer is waited for, when it is asked again, and for good."""
    address = Address("localhost", free_port())
    provision(tmp_path, address, ["bern", "oslo"])
    loopback = Address("127.0.0.1", address.port)
    with (
        grid_of(tmp_path, loopback, "bern", "oslo") as grid,
        site(tmp_path, "bern", "silent") as bern_said,
        site(tmp_path, "oslo"),
    ):
        wait_for(lambda: len(grid.site_names()) == 2, "two sites")
        nodes = {name: node for node, name in grid.site_names().items()}
        answers = {}
        questions = [Message(RecordDict(), node, "query.x") for node in nodes.values()]
        for answer in grid.send_and_receive(questions, timeout=60):
            answers[answer.metadata.src_node_id] = answer
            wait_for(lambda: "asked" in bern_said.read_text(), "question at bern")
            if len(answers) == 1:
                revoke(tmp_path, ["bern"])

        assert not answers[nodes["oslo"]].has_error()
        assert answers[nodes["bern"]].error.reason == "its key was revoked"
        assert grid.site_names() == {nodes["oslo"]: "oslo"}
        assert ask(grid, nodes["bern"])[nodes["bern"]].error.reason == "its key was revoked"
        wait_for(lambda: "refuses this site" in bern_said.read_text(), "refusal at bern")


@contextmanager
def proxy(credentials: Path, port: int) -> Iterator[None]:
    process = subprocess.Popen(
        ["nginx", "-p", credentials / "server", "-c", "nginx.conf", "-g", "daemon off;"]
    )
    try:
        wait_for(lambda: listens(port), "nginx", 20)
        yield
    finally:
        process.terminate()
        process.wait(20)


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def half_a_request(port: int, ca: Path, source: str, request: bytes) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(source, 0))
    context = ssl.create_default_context(cafile=str(ca))
    secured = context.wrap_socket(plain, server_hostname="localhost")
    secured.sendall(request)
    return secured


def test_who_opens_connections_and_does_not_go_on_locks_nobody_out(tmp_path: Path) -> None:
    """510 begun requests and 100 begun bodies of one address; from another a site sends 12 MB."""
    if shutil.which("nginx") is None:
        pytest.skip("needs nginx")
    address = Address("localhost", free_port())
    provision(tmp_path, address, ["bern"])
    header = b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: localhost\r\n"
    body = header + b"flwr-signature: x\r\nContent-Length: 1000000\r\n\r\nx"
    strangers: list[ssl.SSLSocket] = []
    try:
        with (
            grid_of(tmp_path, address.behind_proxy, "bern") as grid,
            proxy(tmp_path, address.port),
        ):
            ca = tmp_path / "ca.crt"
            for number in range(610):
                request = header if number < 510 else body
                strangers.append(half_a_request(address.port, ca, "127.0.0.2", request))
            with site(tmp_path, "bern"):
                wait_for(lambda: len(grid.site_names()) == 1, "site", 30)
                (node,) = grid.site_names()
                weights = np.arange(3_000_000, dtype=np.float32)
                content = RecordDict(
                    {ARRAYS: pack_weights(weights), "more": ConfigRecord({"text": "x" * 10**6})}
                )
                answer = ask(grid, node, content=content)[node]
            refused = 0
            for stranger in strangers[510:]:
                stranger.settimeout(0.01)
                with suppress(TimeoutError):
                    refused += stranger.recv(12) == b"HTTP/1.1 503"
    finally:
        for stranger in strangers:
            stranger.close()

    assert not answer.has_error()
    assert sum(len(array.data) for array in answer.content[ARRAYS].values()) >= 12_000_000
    assert refused == 100 - 64


def test_the_database_is_for_its_owner_only(tmp_path: Path) -> None:
    address = Address("127.0.0.1", free_port())
    provision(tmp_path, address, ["bern"])
    shared = tmp_path / "shared"
    server = ServerSettings(tmp_path / "server", address, shared)
    with open_grid(tmp_path / "link", server, ["bern"], say=lambda _: None):
        modes = {file.name: file.stat().st_mode & 0o777 for file in shared.iterdir()}

    database = f"superlink_{address.port}.db"
    assert modes.keys() >= {database, f"{database}-wal"}
    assert set(modes.values()) == {0o600}
    assert shared.stat().st_mode & 0o777 == 0o700


def test_what_a_site_stores_beyond_its_answer_is_deleted_and_the_site_named(tmp_path: Path) -> None:
    """Bern's is an answer: it is turned out. Lyon sends in the server's name: that is nobody's."""
    address = Address("127.0.0.1", free_port())
    provision(tmp_path, Address("localhost", address.port), ["bern", "lyon", "oslo"])
    with (
        grid_of(tmp_path, address, "bern", "lyon", "oslo") as grid,
        site(tmp_path, "bern", "hoard"),
        site(tmp_path, "lyon", "forge") as lyon_said,
        site(tmp_path, "oslo"),
    ):
        wait_for(lambda: len(grid.site_names()) == 3, "three sites")
        nodes = {name: node for node, name in grid.site_names().items()}
        answers = {}
        questions = [Message(RecordDict(), node, "query.x") for node in nodes.values()]
        for answer in grid.send_and_receive(questions, timeout=120):
            answers[answer.metadata.src_node_id] = answer
            if len(answers) == 2:  # lyon has sent none
                break
        wait_for(lambda: "filled" in lyon_said.read_text(), "forgery of lyon")
        assert not ask(grid, nodes["oslo"])[nodes["oslo"]].has_error()
        stored = sum(message.bytes for message in grid.storage.messages().values())

    assert not answers[nodes["oslo"]].has_error()
    assert "bytes at the server, of an answer of at most" in answers[nodes["bern"]].error.reason
    assert stored < 1_000_000
