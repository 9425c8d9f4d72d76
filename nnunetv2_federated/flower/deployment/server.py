"""The coordinator's side of a federation over a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nnunetv2_federated.federation.errors import FederationError, SettingsError
from nnunetv2_federated.federation.observer import Observer
from nnunetv2_federated.federation.settings import Run
from nnunetv2_federated.flower.deployment.credentials import (
    COORDINATOR_KEY,
    Address,
    check_validity,
)
from nnunetv2_federated.flower.deployment.signing import load_signing_key
from nnunetv2_federated.flower.deployment.superlink import SuperLink
from nnunetv2_federated.flower.server_app import Server
from nnunetv2_federated.training.checkpoint import GlobalModel
from nnunetv2_federated.training.trainer import FederatedRounds


@dataclass(frozen=True)
class ServerSettings:
    """Where the server's credentials are, and where it listens."""

    credentials: Path
    """The folder ``server`` that ``nnUNetv2_federated_provision`` made."""
    listen: Address

    def site_keys(self) -> dict[str, Path]:
        """Public key of each site, by name.

        Raises
        ------
        SettingsError
            If the folder has none.
        """
        keys = {path.stem: path for path in sorted((self.credentials / "sites").glob("*.pub"))}
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


def serve_run(
    run: Run, folder: Path, server: ServerSettings, observer: Observer, trainer: FederatedRounds
) -> Path:
    """Start a SuperLink, run the federation over it to its end, and stop it again.

    Parameters
    ----------
    run
        With ``remote_sites``.
    folder
        What :func:`.launch.prepare` returned; the SuperLink's files go to ``superlink`` in it.
    server
        Credentials and address.
    observer
        Told what happens.
    trainer
        An uninitialised trainer to hold the global model.

    Returns
    -------
    Path
        nnU-Net's result folder of the fold.

    Raises
    ------
    FederationError
        If the SuperLink cannot be started, or the federation fails.
    """
    signing_key = load_signing_key(server.credentials / COORDINATOR_KEY)
    check_validity(server.credentials / "server.crt")
    keys = server.site_keys()
    model = GlobalModel(run, trainer)
    link = SuperLink(folder / "superlink", server.credentials, server.listen)
    error: BaseException | None = None
    try:
        link.start()
        observer.say(f"the server listens at {server.listen}")
        for name in run.remote_sites:
            link.register(name, keys[name])
        grid = link.acquire_run(signing_key)
        if run.settings.min_replies is None:  # every site is needed: wait for one that was lost
            grid.patience = run.settings.wait_for_sites
        heartbeat = link.keep_alive(grid)
        try:
            Server(grid, run, model, observer).run()
        except BaseException as failure:
            error = failure
            raise
        finally:
            link.finish(grid, error)
            heartbeat.stop()
    except KeyboardInterrupt as stop:
        raise FederationError(
            "stopped; the same command with --c continues after the last finished round"
        ) from stop
    finally:
        link.stop()
    return folder.parent
