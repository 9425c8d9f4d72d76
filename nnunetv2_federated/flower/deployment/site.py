"""A hospital's side of a federation: one process that asks, trains and answers."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod

from nnunetv2_federated.federation.errors import (
    CheckpointError,
    FederationError,
    SettingsError,
)
from nnunetv2_federated.federation.messages import (
    FingerprintTask,
    PlanProposal,
    PrepareTask,
    Proposal,
    TrainTask,
)
from nnunetv2_federated.flower.client_app import make_client_app
from nnunetv2_federated.flower.deployment.credentials import Address
from nnunetv2_federated.flower.deployment.desk import (
    Agreement,
    Desk,
    Limits,
    NotApprovedError,
)
from nnunetv2_federated.flower.deployment.fleet import Fleet, LostError, reason_of
from nnunetv2_federated.flower.deployment.signing import load_verifying_key, verify
from nnunetv2_federated.flower.records import NOT_YET, SITE_FAILED, reply, unpack_payload

logger = logging.getLogger(__name__)

Say = Callable[[str], None]
DEFAULT_MAX_MESSAGE_MB = 2048.0
_MEGABYTE = 2**20
_PAUSE_SECONDS = 2.0


@dataclass(frozen=True)
class SiteSettingsFile:
    """What ``site.toml`` says; relative paths are relative to it."""

    name: str
    server: Address
    ca: Path
    key: Path
    coordinator: Path
    work: Path
    """For messages being answered, approvals and the log."""
    limits: Limits = field(default_factory=Limits)
    max_message_mb: float = DEFAULT_MAX_MESSAGE_MB

    def load_key(self) -> ec.EllipticCurvePrivateKey:
        """Read the site's private key.

        Raises
        ------
        SettingsError
            If the file holds none.
        """
        try:
            key = load_ssh_private_key(self.key.read_bytes(), None)
        except (OSError, ValueError) as error:
            raise SettingsError(f"key {self.key} cannot be read: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise SettingsError(f"key {self.key} is not the key nnUNetv2_federated_provision made.")
        return key

    def load_authority(self) -> bytes:
        """Read the authority's certificate.

        Raises
        ------
        SettingsError
            If it cannot be read.
        """
        try:
            return self.ca.read_bytes()
        except OSError as error:
            raise SettingsError(f"ca {self.ca} cannot be read: {error}") from error


def serve(settings: SiteSettingsFile, desk: Desk, say: Say, stopped: threading.Event) -> None:
    """Take part until stopped: connect, answer what comes, connect again when the server is back.

    Raises
    ------
    SettingsError
        If the server refuses the site, or its certificate is not to be trusted.
    """
    coordinator = load_verifying_key(settings.coordinator)
    key, authority = settings.load_key(), settings.load_authority()
    app = _build_app(desk, say)
    said = ""
    while not stopped.is_set():
        fleet = Fleet(
            settings.server,
            key,
            authority,
            settings.work / "inbox",
            max_bytes=int(settings.max_message_mb * _MEGABYTE),
            stopped=stopped.is_set,
        )
        try:
            with fleet:
                say(f"connected to {settings.server}")
                said = ""
                for message in fleet.messages():
                    fleet.answer(_answer(app, coordinator, message, settings.name))
        except LostError as error:
            if str(error) != said:
                said = str(error)
                say(said)
            stopped.wait(_PAUSE_SECONDS)


def _answer(app: ClientApp, coordinator: Any, message: Message, site: str) -> Message:  # noqa: ANN401
    """Let the installed app answer; whatever goes wrong becomes an error reply."""
    try:
        verify(message, coordinator)
        return app(message, Context(message.metadata.run_id, 0, {}, RecordDict(), {}))
    except NotApprovedError as error:
        return Message(Error(NOT_YET, str(error)), reply_to=message)
    except CheckpointError:  # its text names a path: the log has it
        logger.exception("failed")
        reason = f"site {site}: its saved state cannot be used; the site's log says more"
        return Message(Error(SITE_FAILED, reason), reply_to=message)
    except FederationError as error:
        logger.exception("refused")
        return Message(Error(SITE_FAILED, str(error)), reply_to=message)
    except OSError as error:
        logger.exception("failed")
        return Message(Error(SITE_FAILED, f"site {site}: {reason_of(error)}"), reply_to=message)
    except Exception as error:  # its text could name a case or a path: the log has it
        logger.exception("failed")
        reason = f"site {site}: {type(error).__name__}; the site's log says more"
        return Message(Error(SITE_FAILED, reason), reply_to=message)


def _build_app(desk: Desk, say: Say) -> ClientApp:
    """Build the app every site runs; only what was approved gets through to it."""
    agree = _Agreeing(say)
    app = make_client_app(
        desk.find, desk.find_raw, [_guard_planning(desk, agree, say), _guard_training(desk, say)]
    )

    @app.query("join")
    def join(message: Message, context: Context) -> Message:
        proposal = Proposal.from_json(unpack_payload(message.content))
        agree(proposal, functools.partial(desk.join, proposal))
        return reply(message, desk.find(context).describe().to_json())

    return app


class _Agreeing:
    """Join what was approved; say once that somebody has to look at what was not."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._asked: set[str] = set()

    def __call__(self, agreement: Agreement, join: Callable[[], None]) -> None:
        what = f"{agreement.what} {agreement.approval()[:12]}"
        try:
            join()
        except NotApprovedError:
            if what not in self._asked:
                self._asked.add(what)
                self._say(f"asked to take part in {what}: look at it and approve it with --approve")
            raise
        self._say(f"takes part in {what}")


def _guard_planning(desk: Desk, agree: _Agreeing, say: Say) -> Mod:
    def guard(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        kind = message.metadata.message_type
        if kind == "query.survey":
            proposal = PlanProposal.from_json(unpack_payload(message.content))
            agree(proposal, functools.partial(desk.join_planning, proposal))
        elif kind == "query.fingerprint":
            desk.check_fingerprint(FingerprintTask.from_json(unpack_payload(message.content)))
            say("reads all images and masks for the fingerprint")
        elif kind == "query.prepare":
            task = PrepareTask.from_json(unpack_payload(message.content))
            desk.check_prepare(task)
            if not task.check_only:
                say(f"preprocesses with the federation's plans, SHA-256 {task.sha256[:12]}")
        return call_next(message, context)

    return guard


def _guard_training(desk: Desk, say: Say) -> Mod:
    def guard(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if message.metadata.message_type != MessageType.TRAIN:
            return call_next(message, context)
        task = TrainTask.from_json(unpack_payload(message.content))
        settings = desk.find(context).run.settings
        desk.check_task(task, settings)
        say(f"round {task.server_round + 1} of {settings.rounds}, learning rate {task.lr:.5f}")
        with desk.spending():
            return call_next(message, context)

    return guard
