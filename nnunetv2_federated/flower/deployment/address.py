"""Address of a server: host and port."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from nnunetv2_federated.federation.errors import SettingsError

DEFAULT_PORT = 9092


@dataclass(frozen=True)
class Address:
    """Address of a server: host and port."""

    host: str
    port: int = DEFAULT_PORT

    @classmethod
    def of(cls, text: str) -> Address:
        """Read ``HOST`` or ``HOST:PORT``; an IPv6 address goes into square brackets.

        Raises
        ------
        SettingsError
            If it is neither.
        """
        host, separator, port = text.rpartition(":")
        if not separator or text.endswith("]"):
            host, port = text, str(DEFAULT_PORT)
        bare = host.removeprefix("[").removesuffix("]")
        allowed = bare.isascii() and bare and not set(bare) & set("/@ \\")
        if not allowed or (":" in host and not host.startswith("[")):
            raise SettingsError(
                f"--server {text}: give HOST or HOST:PORT, as in fl.example.org:{DEFAULT_PORT}; an "
                "IPv6 address in square brackets."
            )
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise SettingsError(f"--server {text}: the port must be a number from 1 to 65535.")
        return cls(bare, int(port))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def behind_proxy(self) -> Address:
        """Address of the SuperLink behind a proxy that listens at this address."""
        return Address("127.0.0.1", self.port + 1 if self.port < 65535 else self.port - 1)
