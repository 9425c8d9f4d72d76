"""Calls of the server that are repeated until it answers: networks come back, and so do servers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import httpx

from nnunetv2_federated.federation.errors import FederationError, SettingsError
from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.message_objects import GIVE_UP_SECONDS, OVERLOADED

logger = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
_FAILED = 500

Request = TypeVar("Request")
Response = TypeVar("Response")


class LostError(FederationError):
    """There is no connection any more, or not yet; try again."""


class Retry:
    """Repeats calls of one server.

    Parameters
    ----------
    server
        Address of the server, for messages.
    stopped
        Asked between attempts; ``True`` ends them.
    """

    def __init__(self, server: Address, stopped: Callable[[], bool]) -> None:
        self.closing = threading.Event()
        """Ends what threads wait for, after Ctrl-C or SIGTERM in the main thread."""
        self.overloads = 0
        """How often the server failed, or a proxy in its place."""
        self._server = server
        self._stopped = stopped

    def __call__(
        self, method: Callable[[Request], Response], request: Request, *, patient: bool = True
    ) -> Response:
        """Call until there is an answer.

        A server that only fails (HTTP 500) is given up after some minutes.

        Parameters
        ----------
        method, request
            What to call, and with what.
        patient
            Whether to go on without a connection; otherwise only a server that is too busy is
            called again.

        Raises
        ------
        httpx.HTTPError
            If the server refuses the request, or is given up.
        LostError
            If this was stopped in between.
        SettingsError
            If the server's certificate is not to be trusted.
        """
        pause = _FIRST_PAUSE
        failing_since: float | None = None
        while True:
            try:
                return method(request)
            except httpx.HTTPStatusError as error:
                failing_since = self._still_bearable(error, failing_since)
            except httpx.TransportError as error:
                self._check_trust(error)
                if not patient:
                    raise
                failing_since = None
                logger.warning("no connection to %s: %s", self._server, error)
            if self._stopped() or self.closing.wait(pause):
                raise LostError("stopped")
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _check_trust(self, error: httpx.TransportError) -> None:
        """Raise ``SettingsError`` if the connection failed over the server's certificate."""
        text = str(error)
        if "SSL" in text and "EOF" not in text:  # EOF: the server was killed in between
            raise SettingsError(f"{self._server}: {error}") from error

    def _still_bearable(self, error: httpx.HTTPStatusError, since: float | None) -> float | None:
        """Return since when the server fails; raise what need not be tried again."""
        status = error.response.status_code
        if status not in OVERLOADED:
            raise error
        self.overloads += 1
        logger.warning("%s answered HTTP %d", self._server, status)
        if status != _FAILED:  # of a proxy: the server is being started again, perhaps
            return None
        now = time.monotonic()
        if since is not None and now - since > GIVE_UP_SECONDS:
            raise error
        return since or now
