"""A hospital's side of a federation: one process that fetches messages, trains and answers."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections.abc import Callable, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp.typing import Mod

from nnunetv2_federated.federation.errors import (
    CheckpointError,
    FederationError,
    SiteError,
)
from nnunetv2_federated.federation.messages import TrainTask
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.flower.deployment.signing import hash_content, load_verifying_key, verify
from nnunetv2_federated.flower.deployment.site.consent import NotApprovedError
from nnunetv2_federated.flower.deployment.site.guarded_site import GuardedSite
from nnunetv2_federated.flower.deployment.site.inbox import Inbox, reason_of
from nnunetv2_federated.flower.deployment.site.news import ConnectionNews, RoundNews
from nnunetv2_federated.flower.deployment.site.retry import LostError
from nnunetv2_federated.flower.deployment.site.site_app import build_site_app
from nnunetv2_federated.flower.deployment.site.site_file import SiteSettingsFile
from nnunetv2_federated.flower.deployment.site.supernode import SuperNode
from nnunetv2_federated.flower.deployment.site.work_guard import EVALUATE_SCORE, WORK
from nnunetv2_federated.flower.records import NOT_YET, SITE_FAILED, num_bytes, unpack_payload

logger = logging.getLogger(__name__)

Say = Callable[[str], None]
_MEGABYTE = 2**20
_PAUSE_SECONDS = 2.0
_READER = "site"


def serve(
    settings: SiteSettingsFile, site: GuardedSite, say: Say, stopped: threading.Event
) -> None:
    """Take part until stopped: connect, answer what comes, connect again when the server is back.

    Parameters
    ----------
    settings
        Content of ``site.toml``.
    site
        The site's guards.
    say
        Called with one line about each step.
    stopped
        Ends the connection and this function once it is set.

    Raises
    ------
    SettingsError
        If the server refuses the site, or its certificate is not to be trusted.
    """
    key, authority = settings.load_key(), settings.load_authority()
    rounds = RoundNews(
        say,
        lambda _: site.membership.site().folder / "validation",
        lambda _: site.membership.site().personal_folder,
    )
    connection = ConnectionNews(say, lambda: rounds.finished)
    responder = Responder(site, load_verifying_key(settings.coordinator), say, [rounds])
    while not stopped.is_set():
        supernode = SuperNode(
            settings.server,
            key,
            authority,
            Inbox(settings.work / "inbox"),
            max_bytes=int(settings.max_message_mb * _MEGABYTE),
            stopped=stopped.is_set,
        )
        try:
            with supernode:
                connection.connected(settings.server)
                for message in supernode.messages():
                    supernode.answer(responder.answer(message))
                    responder.answered()
        except LostError as error:
            connection.lost(str(error))
            stopped.wait(_PAUSE_SECONDS)


class Responder:
    """Answers what the coordinator signed, each message once, and records what leaves the site.

    Parameters
    ----------
    site
        The site's guards.
    coordinator
        Public key of the coordinator; the site answers nobody else.
    say
        Called with one line about each step.
    mods
        Modifiers of Flower around the site's app, such as one that says what a round brought.
    """

    def __init__(
        self,
        site: GuardedSite,
        coordinator: Ed25519PublicKey,
        say: Say,
        mods: Sequence[Mod] = (),
    ) -> None:
        self._site = site
        self._coordinator = coordinator
        self._by = fingerprint_of(coordinator)
        self._say = say
        self._app = build_site_app(site, say, mods)
        self._fresh = False
        self._round: int | None = None

    def answer(self, message: Message) -> Message:
        """Let the installed app answer; whatever goes wrong becomes an error reply."""
        self._fresh, self._round = False, None
        reply = self._answer(message)
        self._record_leaving(reply)
        return reply

    def answered(self) -> None:
        """Remember that the last answer has left."""
        if self._fresh:
            self._site.ledger.answered()

    def _answer(self, message: Message) -> Message:
        site = self._site.here.name
        try:
            self._verify(message)
            context = Context(message.metadata.run_id, 0, {}, RecordDict(), {})
            return self._app(message, context)
        except NotApprovedError as error:
            return Message(Error(NOT_YET, clean(error)), reply_to=message)
        except CheckpointError as error:  # its text names a path: for the engineer, not the server
            logger.exception("failed")
            self._say(str(error))
            reason = f"site {site}: its saved state cannot be used; the site's log says more"
        except FederationError as error:
            logger.exception("refused")
            reason = str(error)
        except OSError as error:
            logger.exception("failed")
            reason = f"site {site}: {reason_of(error)}"
        except Exception as error:  # its text could name a case or a path: the log has it
            logger.exception("failed")
            reason = f"site {site}: {type(error).__name__}; the site's log says more"
        return Message(Error(SITE_FAILED, clean(reason)), reply_to=message)

    def _verify(self, message: Message) -> None:
        """Raise ``SiteError`` unless the coordinator signed this message, and it is a new one."""
        size = num_bytes(message.content)
        signed = verify(message, self._coordinator)
        self._site.ledger.take(signed.sequence, signed.digest)
        self._fresh = True
        self._round = _round_of(message)
        self._site.record(
            "asked",
            **self._about(message),
            sequence=signed.sequence,
            bytes=size,
            sha256=signed.digest,
            by=self._by,
        )

    def _record_leaving(self, reply: Message) -> None:
        """Record what is about to leave; what cannot be recorded is not sent."""
        if reply.has_error():
            reason = reply.error.reason or ""
            self._site.record("refused", **self._about(reply), reason=reason)
            return
        self._site.record(
            "left",
            **self._about(reply),
            bytes=num_bytes(reply.content),
            sha256=hash_content(reply.content).hex(),
        )

    def _about(self, message: Message) -> dict[str, str | int]:
        about: dict[str, str | int] = {
            "message": clean(message.metadata.message_type),
            "run": str(message.metadata.run_id),
        }
        return about if self._round is None else about | {"round": self._round}


def _round_of(message: Message) -> int | None:
    """Return the round a message is about, counted from 1; ``None`` if it is about none."""
    kind = message.metadata.message_type
    if kind not in WORK:
        return None
    with contextlib.suppress(SiteError):  # said when it is answered
        number = TrainTask.from_json(unpack_payload(message.content, _READER)).server_round
        return number if kind == EVALUATE_SCORE else number + 1  # it is about the round before
    return None


def fingerprint_of(key: Ed25519PublicKey) -> str:
    """Return SHA-256 of a public key, in hex, by which an engineer recognises it."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()
