"""The server's end of the wire: a SuperLink of its own, and a Grid over it.

The ServerApp runs in the coordinator's process, which acquires the run as ``flower-superexec``
would and starts no other. Written for Flower 1.41 and 1.42, see ``fleet.py``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message
from flwr.common.constant import SubStatus
from flwr.common.serde import run_from_proto
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from nnunetv2_federated.federation.errors import FederationError, SettingsError
from nnunetv2_federated.flower.deployment.credentials import Address
from nnunetv2_federated.flower.deployment.process import Child, run_tool
from nnunetv2_federated.flower.deployment.signing import sign

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
_ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})
_START_SECONDS = 60.0
APP_FOLDER = Path(__file__).parents[1] / "app"


class NetworkGrid(HttpGrid):
    """Flower's Grid, which signs what it sends and passes replies on as they come.

    Flower's own waits 3 s between looks and returns all replies at the end.
    """

    signing_key: Ed25519PrivateKey

    def site_names(self) -> dict[int, str]:
        """Names under which the connected sites' keys were registered, by node id."""
        return {node.node_id: node.name for node in self.get_nodes()}

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Send, and yield each reply when it is there, until the time is over."""
        end = None if timeout is None else time.monotonic() + timeout
        messages = list(messages)
        for message in messages:
            sign(message, self.signing_key)
        waiting = {i for i in self.push_messages(messages) if i}
        del messages
        while waiting and (end is None or time.monotonic() < end):
            replies = cast(list[Message], self.pull_messages(waiting))
            waiting -= {reply.metadata.reply_to_message_id for reply in replies}
            if not replies:
                time.sleep(POLL_SECONDS)
            while replies:
                yield replies.pop(0)


class SuperLink:
    """A SuperLink in a process of its own, restarted if it dies.

    Parameters
    ----------
    folder
        For its database, its log and Flower's settings; private.
    credentials
        ``server`` of what :func:`.credentials.provision` made.
    listen
        Where it listens; beyond loopback only behind a proxy.
    insecure
        Plain HTTP, without node keys.
    """

    def __init__(
        self, folder: Path, credentials: Path, listen: Address, *, insecure: bool = False
    ) -> None:
        self._folder = folder
        self._credentials = credentials
        self._listen = listen
        self._insecure = insecure
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._secret = secrets.token_bytes(32)
        secret_file = folder / "superexec.secret"
        secret_file.touch(0o600)
        secret_file.write_bytes(self._secret)
        tls: list[str | Path] = ["--insecure"]
        if not insecure:
            tls = [
                *("--ssl-certfile", credentials / "server.crt"),
                *("--ssl-keyfile", credentials / "server.key"),
                *("--ssl-ca-certfile", credentials / "ca.crt", "--enable-supernode-auth"),
            ]
        self._child = Child(
            "flower-superlink",
            [
                *("flower-superlink", "--host", listen.host, "--port", str(listen.port)),
                *("--isolation", "process", "--database", folder / "state.db"),
                *("--superexec-auth-secret-file", secret_file, *tls),
            ],
            folder / "superlink.log",
            flower_environment(folder / "flwr"),
        )
        self._write_connection()

    @property
    def _authority(self) -> bytes | None:
        return None if self._insecure else (self._credentials / "ca.crt").read_bytes()

    @property
    def _address(self) -> str:
        host = "127.0.0.1" if self._listen.host in ("0.0.0.0", "::") else self._listen.host  # noqa: S104
        return str(Address(host, self._listen.port))

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises
        ------
        SettingsError
            If it does not, with the last line of its log.
        """
        self._child.start()
        end = time.monotonic() + _START_SECONDS
        verify: str | bool = True if self._insecure else str(self._credentials / "ca.crt")
        scheme = "http" if self._insecure else "https"
        while True:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{scheme}://{self._address}/v1/", verify=verify, timeout=5)
                return
            if not self._child.alive() or time.monotonic() > end:
                raise SettingsError(
                    f"the SuperLink does not start at {self._address}: {self._child.last_line()}"
                )
            time.sleep(0.2)

    def register(self, site: str, public_key: Path) -> None:
        """Let a site's key in; a key that is in already stays so.

        Raises
        ------
        SettingsError
            If the SuperLink refuses it.
        """
        command: list[str | Path] = [
            "flwr",
            "supernode",
            "register",
            public_key,
            "server",
            "--name",
            site,
        ]
        code, output = run_tool(command, flower_environment(self._folder / "flwr"))
        if code != 0 and "already" not in output:
            raise SettingsError(f"the key {public_key} cannot be registered: {output}")

    def acquire_run(self, key: Ed25519PrivateKey) -> NetworkGrid:
        """Create a run, and take it over as the process that executes it.

        Raises
        ------
        FederationError
            If the SuperLink does not hand it out.
        """
        command: list[str | Path] = ["flwr", "run", APP_FOLDER, "server"]
        code, output = run_tool(command, flower_environment(self._folder / "flwr"))
        if code != 0:
            raise FederationError(f"the run cannot be created: {output}")
        grid = NetworkGrid(
            self._address, self._insecure, self._authority, token=self._acquire_token()
        )
        grid.signing_key = key
        received = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id = received.task_id
        TaskIdentity.run_id, TaskIdentity.node_id = received.run.run_id, received.context.node_id
        grid.set_run(run_from_proto(received.run))
        return grid

    def _acquire_token(self) -> str:
        client = RuntimeHttpClient.from_server_address(
            server_address=self._address,
            insecure=self._insecure,
            root_certificates=self._authority,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperExec"),
                SuperExecAuthHttpInterceptor(
                    master_secret=self._secret, protected_methods=_ACQUIRE
                ),
            ],
        )
        end = time.monotonic() + _START_SECONDS
        try:
            while time.monotonic() < end:
                response = client.AcquireTask(
                    AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
                )
                if response.token:
                    return response.token
                time.sleep(0.2)
        finally:
            client.close()
        raise FederationError("the SuperLink does not hand out the run it was given")

    def keep_alive(self, grid: NetworkGrid) -> HeartbeatSender:
        """Tell the SuperLink that the run is being executed, and restart it should it die."""

        def beat() -> bool:
            if not self._child.alive():
                logger.error("the SuperLink ended: %s; starting it again", self._child.last_line())
                self._child.start()
            try:
                alive = grid._runtime_client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success
            except httpx.HTTPError:
                return False
            if not alive:
                logger.error("the SuperLink has given the run up")
            return True

        sender = HeartbeatSender(beat)
        sender.start()
        return sender

    def finish(self, grid: NetworkGrid, error: BaseException | None) -> None:
        """Tell how the run ended."""
        status = SubStatus.COMPLETED if error is None else SubStatus.FAILED
        with contextlib.suppress(httpx.HTTPError):
            grid._runtime_client.PushTaskOutput(
                PushTaskOutputRequest(
                    sub_status=status, details="" if error is None else type(error).__name__
                )
            )
        grid.close()

    def stop(self) -> None:
        """End it."""
        self._child.stop()

    def _write_connection(self) -> None:
        home = self._folder / "flwr"
        home.mkdir(exist_ok=True)
        tls = (
            "insecure = true"
            if self._insecure
            else (f'root-certificates = "{(self._credentials / "ca.crt").resolve()}"')
        )
        (home / "config.toml").write_text(
            f'[superlink.server]\naddress = "{self._address}"\n{tls}\n'
        )


def flower_environment(home: Path) -> dict[str, str]:
    """Return an environment in which Flower's commands contact nobody but the SuperLink."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }
