"""The coordinator's side of a federation over a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec

from nnunetv2_federated.federation.errors import FederationError, SettingsError
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.federation.waiting import Grace
from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.keyfiles import (
    authority_fingerprint,
    check_private_folder,
    read_secret,
)
from nnunetv2_federated.flower.deployment.server.certificates import check_validity
from nnunetv2_federated.flower.deployment.server.credentials import COORDINATOR_KEY, SERVER_KEY
from nnunetv2_federated.flower.deployment.server.network_grid import RUN_ENDED, NetworkGrid
from nnunetv2_federated.flower.deployment.server.site_register import SiteRegister
from nnunetv2_federated.flower.deployment.server.superlink import SuperLink
from nnunetv2_federated.flower.deployment.signing import load_signing_key


@dataclass(frozen=True)
class ServerSettings:
    """Where the server's credentials are, and where it listens."""

    credentials: Path
    """The folder ``server`` that ``nnUNetv2_federated_provision`` made."""
    listen: Address
    database: Path | None = None
    """Folder for the SuperLink's database; ``None`` to keep it with its log."""

    def check(self) -> None:
        """Check what the SuperLink is given, before anything begins.

        Raises
        ------
        SettingsError
            If there is no site, a key or the database could be read or replaced by others, or the
            certificate is not valid now.
        """
        self.site_keys()
        authority_fingerprint(self.credentials / "ca.crt")  # raises if it is none
        read_secret(self.credentials / SERVER_KEY)
        load_signing_key(self.credentials / COORDINATOR_KEY)
        check_validity(self.credentials / "server.crt")
        if self.database is not None:
            check_private_folder(self.database, "--superlink-database")

    def site_keys(self) -> dict[str, ec.EllipticCurvePublicKey]:
        """Public key of each site that may take part now, by name.

        Raises
        ------
        SettingsError
            If there is none, or one cannot be read.
        """
        keys = SiteRegister(self.credentials).keys()
        if not keys:
            raise SettingsError(
                f"--credentials {self.credentials}: no site's key there (sites/NAME.pub); give the "
                "folder 'server' that nnUNetv2_federated_provision made."
            )
        return keys


def check_listening(listen: Address, *, force: bool) -> None:
    """Refuse what would open the server to more than its sites.

    Raises
    ------
    SettingsError
        If it would listen beyond this machine and that was not forced.
    """
    if listen.loopback or force:
        return
    raise SettingsError(
        f"--listen {listen}: Flower's control API would be open to whoever reaches it, who could "
        "then register keys. Listen on 127.0.0.1 behind the proxy (server/nginx.conf), or add "
        "--force."
    )


def check_credentials(server: ServerSettings, sites: Iterable[str]) -> None:
    """Find what the credentials lack before a federation is begun with them.

    Parameters
    ----------
    server
        Where the credentials are.
    sites
        Names of the sites that may connect.

    Raises
    ------
    SettingsError
        If the coordinator's key cannot be read, the certificate is not valid any more, or a site
        has no key.
    """
    load_signing_key(server.credentials / COORDINATOR_KEY)
    check_validity(server.credentials / "server.crt")
    keys = server.site_keys()
    for name in sites:
        if name not in keys:
            raise SettingsError(f"site {name} has no key in {server.credentials / 'sites'}.")


@contextmanager
def open_grid(
    folder: Path,
    server: ServerSettings,
    sites: Iterable[str],
    say: Callable[[str], None],
    *,
    patience: float = 0.0,
    grace: Grace | None = None,
) -> Iterator[NetworkGrid]:
    """Start a SuperLink and let the sites' keys in; stop it at the end.

    Parameters
    ----------
    folder
        Folder of the SuperLink's files.
    server
        Credentials and address of the server.
    sites
        Names of the sites that may connect.
    say
        Called with a line about where the server listens.
    patience, grace
        How long the Grid waits for sites, see :class:`.NetworkGrid`.

    Yields
    ------
    NetworkGrid
        Reaches the sites.

    Raises
    ------
    FederationError
        If the SuperLink cannot be started, or ends the run.
    """
    server.check()
    signing_key = load_signing_key(server.credentials / COORDINATOR_KEY)
    link = SuperLink(folder, server.credentials, server.listen, server.database)
    error: BaseException | None = None
    try:
        link.start()
        say(f"the server listens at {server.listen}")
        for name in link.register(sites):
            say(f"{name}: was turned out of this run; it can take part in a new one")
        grid = link.acquire_run(signing_key, patience=patience, grace=grace)
        heartbeat = link.keep_alive(grid)
        try:
            yield grid
        except httpx.HTTPError as failure:
            error = failure
            raise FederationError(
                f"the SuperLink {_what_failed(failure)}; its log is {folder / 'superlink.log'}. "
                "The same command goes on, a training with --c."
            ) from failure
        except BaseException as failure:
            error = failure
            raise
        finally:
            heartbeat.stop()
            link.finish(grid, error)
    finally:
        link.stop()
    link.delete_database()


def _what_failed(error: httpx.HTTPError) -> str:
    if not isinstance(error, httpx.HTTPStatusError):
        return f"does not answer ({error})"
    status = error.response.status_code
    if status in RUN_ENDED:
        return "has given the run up: it was stopped, or this machine slept"
    return f"failed (HTTP {status})"


@contextmanager
def federation_grid(
    run: Run,
    folder: Path,
    server: ServerSettings,
    observer: Observer,
    *,
    again: str = "the same command with --c continues after the last finished round",
) -> Iterator[NetworkGrid]:
    """Start a SuperLink for a run, or for all of a queue or a study, and stop it again.

    Parameters
    ----------
    run
        A run with ``remote_sites``, whose settings say how long sites are waited for.
    folder
        Folder of the SuperLink's files.
    server
        Credentials and address of the server.
    observer
        Called with a line about where the server listens.
    again
        How to go on after it was stopped, for the message.

    Yields
    ------
    NetworkGrid
        Reaches the sites.

    Raises
    ------
    FederationError
        If the SuperLink cannot be started, or it is stopped.
    """
    settings = run.settings
    # without --min-replies nobody said that it does not matter who is lost
    patience = settings.wait_for_sites if settings.min_replies is None else 0.0
    # a round with a deadline has sites that train to its end: no grace before that
    grace = Grace(max(settings.wait_for_sites, settings.round_deadline or 0.0), run.needed)
    try:
        with open_grid(
            folder, server, run.remote_sites, observer.say, patience=patience, grace=grace
        ) as grid:
            yield grid
    except KeyboardInterrupt as stop:
        raise FederationError(f"stopped; {again}") from stop
