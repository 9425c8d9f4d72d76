"""Real Flower processes on loopback, with the credentials a coordinator hands out."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nnunetv2_federated.flower.deployment.credentials import Address, provision

pytestmark = pytest.mark.deployment

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_for(found: Callable[[], bool], what: str, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, f"no {what} after {seconds} s"
        time.sleep(0.2)


class Deployment:
    """Starts Flower's commands, each with a log and a home of its own, and stops them all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.credentials = folder / "credentials"
        self.processes: list[subprocess.Popen[bytes]] = []
        provision(self.credentials, Address("localhost", self.port), ["hannover", "guangzhou"])

    def environment(self, name: str) -> dict[str, str]:
        home = self.folder / f"flwr_{name}"
        home.mkdir(exist_ok=True)
        return os.environ | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "FLWR_HOME": str(home),
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        }

    def start(self, name: str, *command: str | Path) -> Callable[[], str]:
        log = self.folder / f"{name}.log"
        with log.open("wb") as file:
            self.processes.append(
                subprocess.Popen(
                    command, stdout=file, stderr=subprocess.STDOUT, env=self.environment(name)
                )
            )
        return log.read_text

    def start_server(self) -> Callable[[], str]:
        server = self.credentials / "server"
        log = self.start(
            "server",
            *("flower-superlink", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--ssl-certfile", server / "server.crt", "--ssl-keyfile", server / "server.key"),
            *("--ssl-ca-certfile", server / "ca.crt", "--enable-supernode-auth"),
            *("--isolation", "process"),
        )
        wait_for(lambda: "Uvicorn running" in log(), "server")
        return log

    def start_site(self, site: str, ca: Path | None = None) -> Callable[[], str]:
        bundle = self.credentials / "sites" / site
        return self.start(
            site,
            *("flower-supernode", "--superlink", f"localhost:{self.port}"),
            *("--root-certificates", ca or bundle / "ca.crt"),
            *("--auth-supernode-private-key", bundle / "site.key", "--isolation", "process"),
            *("--host", "127.0.0.1", "--port", str(free_port())),
        )

    def register(self, site: str) -> None:
        environment = self.environment("coordinator")
        (Path(environment["FLWR_HOME"]) / "config.toml").write_text(
            f'[superlink.server]\naddress = "localhost:{self.port}"\n'
            f'root-certificates = "{self.credentials / "ca.crt"}"\n'
        )
        public = self.credentials / "server" / "sites" / f"{site}.pub"
        subprocess.run(
            ["flwr", "supernode", "register", public, "server"],
            env=environment,
            check=True,
            capture_output=True,
        )

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            process.wait(30)


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    running = Deployment(tmp_path)
    yield running
    running.stop()


def test_only_a_registered_key_and_the_right_authority_join(
    deployment: Deployment, tmp_path: Path
) -> None:
    provision(tmp_path / "stranger", Address("localhost", deployment.port), [])
    server = deployment.start_server()
    deployment.register("hannover")

    deployment.start_site("hannover")
    wait_for(lambda: '/v1/fleet/activate-node HTTP/1.1" 200' in server(), "site with its key")
    deployment.start_site("guangzhou")
    wait_for(lambda: "No SuperNode found with the given public key" in server(), "refusal")
    site = deployment.start_site("hannover", ca=tmp_path / "stranger" / "ca.crt")
    wait_for(lambda: "CERTIFICATE_VERIFY_FAILED" in site(), "distrust of the server")

    assert server().count('/v1/fleet/activate-node HTTP/1.1" 200') == 1
