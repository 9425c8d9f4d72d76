"""A SuperLink of the server's own, in a process of its own.

The ServerApp runs in the coordinator's process, which acquires the run as ``flower-superexec``
would and starts no other.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

from nnunetv2_federated.federation.errors import FederationError, SettingsError
from nnunetv2_federated.federation.files import private_folder, replacing
from nnunetv2_federated.federation.waiting import Grace
from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.keyfiles import check_private_folder
from nnunetv2_federated.flower.deployment.server.admission import Admission
from nnunetv2_federated.flower.deployment.server.control import Control
from nnunetv2_federated.flower.deployment.server.network_grid import NetworkGrid
from nnunetv2_federated.flower.deployment.server.processes import Child
from nnunetv2_federated.flower.deployment.server.site_register import SiteRegister
from nnunetv2_federated.flower.deployment.server.storage import Storage

logger = logging.getLogger(__name__)

_ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})
_START_SECONDS = 60.0
_LOOK_SECONDS = 0.2
_APP_FOLDER = Path(__file__).parents[2] / "app"


class SuperLink:
    """A SuperLink in a process of its own, restarted if it dies.

    Parameters
    ----------
    folder
        Folder of the SuperLink's database, log and settings; made private.
    credentials
        Folder ``server`` that :func:`.credentials.provision` made.
    listen
        Address that the SuperLink listens at; beyond loopback only behind a proxy.
    database
        Folder of the database, which holds the weights in flight; ``None`` for ``folder``.
    """

    def __init__(
        self, folder: Path, credentials: Path, listen: Address, database: Path | None = None
    ) -> None:
        self._database = (database or folder) / f"superlink_{listen.port}.db"
        self._folder = folder
        self._credentials = credentials
        self._listen = listen
        self._run_file = folder / "run"
        self._admission: Admission
        """Set by :meth:`register`."""
        private_folder(folder)
        if database is not None:
            check_private_folder(database, "--superlink-database")
        self._secret = secrets.token_bytes(32)
        secret_file = folder / "superexec.secret"
        with replacing(secret_file, private=True) as temporary:
            temporary.write_bytes(self._secret)
        self._child = Child(
            [
                *("flower-superlink", "--host", listen.host, "--port", str(listen.port)),
                *("--isolation", "process", "--database", self._database),
                *("--superexec-auth-secret-file", secret_file, "--enable-supernode-auth"),
                *("--ssl-certfile", credentials / "server.crt"),
                *("--ssl-keyfile", credentials / "server.key"),
                *("--ssl-ca-certfile", credentials / "ca.crt"),
            ],
            folder / "superlink.log",
            flower_environment(folder / "flwr"),
        )
        self._control = Control(self._address, self._authority)

    @property
    def _authority(self) -> bytes:
        return (self._credentials / "ca.crt").read_bytes()

    @property
    def _address(self) -> str:
        host = "127.0.0.1" if self._listen.host in ("0.0.0.0", "::") else self._listen.host  # noqa: S104
        return str(Address(host, self._listen.port))

    def start(self) -> None:
        """Start the SuperLink and wait until it answers.

        Raises
        ------
        SettingsError
            If it does not, with the last line of its log.
        """
        end = time.monotonic() + _START_SECONDS
        while self._answers():  # an earlier one may be about to end
            if time.monotonic() > end:
                raise SettingsError(
                    f"something listens at {self._address} already: stop it, or choose another "
                    "--listen."
                )
            time.sleep(_LOOK_SECONDS)
        self._child.start()
        end = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._child.failed() or time.monotonic() > end:
                raise SettingsError(
                    f"the SuperLink does not start at {self._address}: {self._child.last_line()}"
                )
            time.sleep(_LOOK_SECONDS)
        self._child.keep_running()

    def _answers(self) -> bool:
        host, _, port = self._address.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=1):
                return True
        except OSError:
            return False

    def register(self, sites: Iterable[str]) -> list[str]:
        """Let the keys of these sites in, and no other; a key that is in already stays so.

        Returns
        -------
        list of str
            Sites that were turned out of this SuperLink before: Flower lets such a key in no more.

        Raises
        ------
        SettingsError
            If a key cannot be read.
        FederationError
            If the SuperLink refuses one.
        """
        register = SiteRegister(self._credentials)
        keys = register.keys()
        wanted = [name for name in sites if name in keys]
        nodes = self._control.register({name: keys[name] for name in wanted})
        self._admission = Admission(register, self._control, nodes)
        return [name for name in wanted if name not in nodes]

    def acquire_run(
        self, key: Ed25519PrivateKey, *, patience: float = 0.0, grace: Grace | None = None
    ) -> NetworkGrid:
        """Create a run, and take it over as the process that executes it.

        Parameters
        ----------
        key
            Key that signs messages to the sites.
        patience, grace
            How long the Grid waits, see :class:`.NetworkGrid`.

        Raises
        ------
        FederationError
            If the SuperLink does not hand it out.
        """
        self._stop_earlier_run()
        end = time.monotonic() + _START_SECONDS
        while True:
            try:
                self._control.start_run(_APP_FOLDER)
                grid = NetworkGrid(
                    self._address,
                    self._authority,
                    self._acquire_token(),
                    signing_key=key,
                    admission=self._admission,
                    storage=Storage(self._database),
                    patience=patience,
                    grace=grace,
                )
                self._run_file.write_text(str(grid.pull_task()))
            except httpx.HTTPError as error:  # killed: the run may have been handed out to nobody
                if time.monotonic() > end:
                    raise FederationError(f"the run cannot be acquired: {error}") from error
            else:
                return grid

    def _stop_earlier_run(self) -> None:
        """End the run of a server that was killed: sites would wait for the rest of its messages.

        The SuperLink itself ends it a minute after the last heartbeat.
        """
        if self._run_file.is_file() and (run_id := self._run_file.read_text()).isdecimal():
            self._control.stop_run(int(run_id))

    def _acquire_token(self) -> str:
        client = RuntimeHttpClient.from_server_address(
            server_address=self._address,
            insecure=False,
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
                time.sleep(_LOOK_SECONDS)
        finally:
            client.close()
        raise FederationError("the SuperLink does not hand out the run it was given")

    def keep_alive(self, grid: NetworkGrid) -> HeartbeatSender:
        """Tell the SuperLink that the run is being executed."""

        def beat() -> bool:
            try:
                # asked once: the sender itself asks again, sooner, and can be stopped meanwhile
                alive = grid.heartbeat()
            except httpx.HTTPError:
                return False
            if not alive:
                logger.error("the SuperLink has given the run up")
            return True

        sender = HeartbeatSender(beat)
        sender.start()
        return sender

    def finish(self, grid: NetworkGrid, error: BaseException | None) -> None:
        """Tell the SuperLink how the run ended, and close the connection to it."""
        with contextlib.suppress(httpx.HTTPError):
            grid.finish(error)
            self._run_file.unlink(missing_ok=True)  # there is nothing to stop
        grid.close()

    def stop(self) -> None:
        """Stop the SuperLink."""
        self._child.stop()

    def delete_database(self) -> None:
        """Delete the database of a finished run: it is as large as the run's messages."""
        for file in self._database.parent.glob(f"{self._database.name}*"):
            file.unlink()


def flower_environment(home: Path) -> dict[str, str]:
    """Return an environment in which Flower's commands contact nobody but the SuperLink."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }
