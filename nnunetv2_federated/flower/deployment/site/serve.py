"""A hospital's side of a federation: one process that asks, trains and answers."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import logging
import threading
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod

from nnunetv2_federated.federation.errors import (
    CheckpointError,
    FederationError,
    SiteError,
)
from nnunetv2_federated.federation.messages import (
    FingerprintTask,
    PlanProposal,
    PrepareTask,
    Proposal,
    TrainTask,
)
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.flower.client_app import make_client_app
from nnunetv2_federated.flower.deployment.signing import hash_content, load_verifying_key, verify
from nnunetv2_federated.flower.deployment.site.consent import Agreement, NotApprovedError
from nnunetv2_federated.flower.deployment.site.desk import EVALUATE_FULLY, WORK, Desk
from nnunetv2_federated.flower.deployment.site.site_file import SiteSettingsFile
from nnunetv2_federated.flower.deployment.site.supernode import Fleet, LostError, reason_of
from nnunetv2_federated.flower.records import (
    CONFIG,
    NOT_YET,
    SITE_FAILED,
    num_bytes,
    only_array,
    pack_payload,
    reply,
    unpack_payload,
)

logger = logging.getLogger(__name__)

Say = Callable[[str], None]
_MEGABYTE = 2**20
_PAUSE_SECONDS = 2.0
_READER = "site"


def serve(settings: SiteSettingsFile, desk: Desk, say: Say, stopped: threading.Event) -> None:
    """Take part until stopped: connect, answer what comes, connect again when the server is back.

    Raises
    ------
    SettingsError
        If the server refuses the site, or its certificate is not to be trusted.
    """
    key, authority = settings.load_key(), settings.load_authority()
    clerk = Clerk(desk, load_verifying_key(settings.coordinator), say)
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
                    fleet.answer(clerk.answer(message))
                    clerk.answered()
        except LostError as error:
            if str(error) != said:
                said = str(error)
                say(said)
            stopped.wait(_PAUSE_SECONDS)


class Clerk:
    """Answers what the coordinator signed, each message once, and records what leaves the site.

    Parameters
    ----------
    desk
        The site's decisions.
    coordinator
        Key of whom the site answers.
    say
        Told what happens.
    """

    def __init__(self, desk: Desk, coordinator: Ed25519PublicKey, say: Say) -> None:
        self._desk = desk
        self._coordinator = coordinator
        self._by = fingerprint_of(coordinator)
        self._say = say
        self._app = _build_app(desk, say)
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
            self._desk.ledger.answered()

    def _answer(self, message: Message) -> Message:
        site = self._desk.site
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
        self._desk.ledger.take(signed.sequence, signed.digest)
        self._fresh = True
        self._round = _round_of(message)
        self._desk.record(
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
            self._desk.record("refused", **self._about(reply), reason=reason)
            return
        self._desk.record(
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
    if message.metadata.message_type not in WORK:
        return None
    with contextlib.suppress(SiteError):  # said when it is answered
        return TrainTask.from_json(unpack_payload(message.content, _READER)).server_round + 1
    return None


def fingerprint_of(key: Ed25519PublicKey) -> str:
    """Return SHA-256 of a public key, in hex, by which an engineer recognises it."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def _build_app(desk: Desk, say: Say) -> ClientApp:
    """Build the app every site runs; only what was approved gets through to it."""
    agree = _Agreeing(say)
    app = make_client_app(
        desk.find, desk.find_raw, [_guard_planning(desk, agree, say), _guard_work(desk, say)]
    )

    @app.query("join")
    def join(message: Message, context: Context) -> Message:
        proposal = Proposal.from_json(unpack_payload(message.content, _READER))
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
            proposal = PlanProposal.from_json(unpack_payload(message.content, _READER))
            agree(proposal, functools.partial(desk.join_planning, proposal))
        elif kind == "query.fingerprint":
            task = FingerprintTask.from_json(unpack_payload(message.content, _READER))
            desk.check_fingerprint(task, desk.find_raw(context).survey().cases)
            say("reads all images and masks for the fingerprint")
        elif kind == "query.prepare":
            plans = PrepareTask.from_json(unpack_payload(message.content, _READER))
            desk.check_prepare(plans)
            if not plans.check_only:
                say(f"preprocesses with the federation's plans, SHA-256 {plans.plans_hash[:12]}")
        return call_next(message, context)

    return guard


def _guard_work(desk: Desk, say: Say) -> Mod:
    def guard(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        kind = message.metadata.message_type
        if kind not in WORK:
            return call_next(message, context)
        task = TrainTask.from_json(unpack_payload(message.content, _READER))
        question, kept = desk.admit(kind, task, only_array(message.content).data)
        if kept is not None:
            say(f"{_work(kind, task)}: the answer given before, again")
            return Message(kept, reply_to=message)
        say(_work(kind, task))
        seconds = desk.seconds_left(task)
        if seconds != task.seconds:
            task = dataclasses.replace(task, seconds=seconds)
            message.content[CONFIG] = pack_payload(task.to_json())
        with desk.working():
            answer = call_next(message, context)
        desk.finish(question, answer.content)
        return answer

    return guard


def _work(kind: str, task: TrainTask) -> str:
    if kind == MessageType.TRAIN:
        return f"round {task.server_round + 1}, learning rate {task.lr:.5f}"
    return "full validation" if kind == EVALUATE_FULLY else "validation of the last round's model"
