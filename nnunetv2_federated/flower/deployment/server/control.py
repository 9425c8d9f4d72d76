"""Flower's control API, called as its commands ``flwr supernode``, ``run`` and ``stop`` call it.

In this process: each of those commands would start an interpreter of its own, which takes seconds
and a federation of thirty sites minutes.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.constant import NodeStatus
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from nnunetv2_federated.federation.errors import FederationError
from nnunetv2_federated.flower.deployment.message_objects import OVERLOADED

Request = TypeVar("Request")
Response = TypeVar("Response")

_AGAIN = (500, *OVERLOADED)
"""HTTP statuses of a SuperLink that may answer later: 500 is also "the database is locked"."""
_ENDED = (ApiErrorCode.RUN_ALREADY_FINISHED, ApiErrorCode.RUN_ID_NOT_FOUND)
_REGISTERED = (ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE,)
_GONE = (ApiErrorCode.NODE_NOT_FOUND,)
_PATIENCE_SECONDS = 60.0
_LOOK_SECONDS = 0.2


class Control:
    """The control API of a SuperLink that this process started.

    What the SuperLink does not answer, because it is being started again, is asked again for a
    minute.

    Parameters
    ----------
    address
        ``HOST:PORT`` of the SuperLink.
    authority
        PEM of the certificate authority.
    """

    def __init__(self, address: str, authority: bytes) -> None:
        self._address = address
        self._authority = authority

    def register(self, sites: Mapping[str, ec.EllipticCurvePublicKey]) -> dict[str, int]:
        """Let these keys in, and no other; what is in already stays so.

        Parameters
        ----------
        sites
            Public key of each site, by name.

        Returns
        -------
        dict
            Node of each site. A site whose key was taken out of this SuperLink before has none:
            Flower never lets such a key in again.

        Raises
        ------
        FederationError
            If the SuperLink refuses a key, or does not answer.
        """
        wanted = {public_key_to_bytes(key): name for name, key in sites.items()}
        with self._client() as client:
            known = _call(client.ListNodes, ListNodesRequest()).nodes_info
            for node in known:
                if node.public_key not in wanted:
                    _unregister(client, node.node_id)
            for key in wanted.keys() - {node.public_key for node in known}:
                with _but_for(_REGISTERED):  # the first answer was lost with a SuperLink
                    request = RegisterNodeRequest(public_key=key, name=wanted[key])
                    _call(client.RegisterNode, request)
            return {
                wanted[node.public_key]: node.node_id
                for node in _call(client.ListNodes, ListNodesRequest()).nodes_info
                if node.public_key in wanted and node.status != NodeStatus.UNREGISTERED
            }

    def unregister(self, node: int) -> None:
        """Take a site out: from now on the SuperLink answers nothing that it asks.

        Raises
        ------
        FederationError
            If the SuperLink does not answer.
        """
        with self._client() as client:
            _unregister(client, node)

    def start_run(self, app: Path) -> None:
        """Submit a run of the app in a folder.

        Raises
        ------
        FederationError
            If the SuperLink refuses it, or does not answer.
        """
        content = build_fab_from_disk(app)
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        with self._client() as client:
            answer = _call(client.StartRun, StartRunRequest(fab=fab_to_proto(fab)))
        if not answer.HasField("run_id"):
            raise FederationError("the SuperLink did not start the run")

    def stop_run(self, run_id: int) -> None:
        """End a run; one that has ended already, or is not known, is left alone.

        Raises
        ------
        FederationError
            If the SuperLink does not answer.
        """
        with self._client() as client, _but_for(_ENDED):
            _call(client.StopRun, StopRunRequest(run_id=run_id))

    def _client(self) -> ControlHttpClient:
        return ControlHttpClient.from_server_address(
            self._address,
            insecure=False,
            root_certificates=self._authority,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )


class _RefusedError(FederationError):
    """The SuperLink understood, and refuses."""

    def __init__(self, text: str, code: int | None) -> None:
        super().__init__(text)
        self.code = code


@contextlib.contextmanager
def _but_for(codes: tuple[int, ...]) -> Iterator[None]:
    try:
        yield
    except _RefusedError as error:
        if error.code not in codes:
            raise


def _unregister(client: ControlHttpClient, node: int) -> None:
    with _but_for(_GONE):
        _call(client.UnregisterNode, UnregisterNodeRequest(node_id=node))


def _call(method: Callable[[Request], Response], request: Request) -> Response:
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return method(request)
        except httpx.HTTPStatusError as error:
            known = FlowerError.from_json(error.response.text)
            reason = str(error) if known is None else known.message
            problem = _RefusedError(
                f"the SuperLink refuses: {reason}", None if known is None else known.code
            )
            if error.response.status_code not in _AGAIN or time.monotonic() > end:
                raise problem from error
        except httpx.TransportError as error:
            if time.monotonic() > end:
                raise FederationError(f"the SuperLink is unavailable: {error}") from error
        time.sleep(_LOOK_SECONDS)
