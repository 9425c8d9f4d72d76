"""A site's connection to the server, when the server fails or the site was killed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doubles import Clock, http_error, tree
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError
from flwr.supercore.task_identity import TaskIdentity

from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.server.credentials import provision
from nnunetv2_federated.flower.deployment.site.inbox import Inbox
from nnunetv2_federated.flower.deployment.site.retry import LostError
from nnunetv2_federated.flower.deployment.site.site_file import read_site_file
from nnunetv2_federated.flower.deployment.site.supernode import SuperNode


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    return Clock(monkeypatch)


@pytest.fixture
def supernode(tmp_path: Path) -> SuperNode:
    provision(tmp_path, Address("127.0.0.1", 9), ["bern"])  # nobody listens at "discard"
    settings = read_site_file(tmp_path / "sites" / "bern" / "site.toml")
    inbox = Inbox(tmp_path / "inbox")
    return SuperNode(
        settings.server, settings.load_key(), settings.load_authority(), inbox, max_bytes=2**20
    )


def failing(*statuses: int | None) -> Callable[[Any], PullMessagesResponse]:
    left = iter(statuses)

    def method(request: Any) -> PullMessagesResponse:
        del request
        status = next(left)
        if status is not None:
            raise http_error(status)
        return PullMessagesResponse()

    return method


def test_a_site_asks_again_after_500_and_then_says_what_is_wrong(
    clock: Clock, supernode: SuperNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supernode._call.closing, "wait", clock.sleep)
    assert supernode._call(failing(500, 502, 500, None), None) == PullMessagesResponse()
    began = clock.now
    trying = pytest.raises(LostError, match=r"fails \(HTTP 500\); this site goes on trying")
    with trying, supernode._losing():
        supernode._call(failing(*[500] * 1000), None)
    assert 300 < clock.now - began < 320
    no_server = pytest.raises(LostError, match="is this the address of the federation's server")
    with no_server, supernode._losing():
        supernode._call(failing(418), None)


def test_a_site_begins_anew_if_a_message_may_have_been_lost(
    clock: Clock, supernode: SuperNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supernode._call.closing, "wait", clock.sleep)
    monkeypatch.setattr(supernode._client, "PullMessages", failing(None, 500, *[None] * 100))
    assert not supernode._pull().messages_list
    clock.now += 1000
    supernode._pull()  # the server fails once
    clock.now += 19
    supernode._pull()
    clock.now += 2
    with pytest.raises(LostError, match="may have lost a message; connecting anew"):
        supernode._pull()
    clock.now += 1000
    supernode._pull()


def test_a_site_that_is_told_to_stop_waits_for_no_network(supernode: SuperNode) -> None:
    """Parts of messages travel in threads, which Python waits for."""
    lost = threading.Event()

    def upload() -> None:
        with contextlib.suppress(LostError):
            supernode._call(supernode._client.PullMessages, PullMessagesRequest())
        lost.set()

    threading.Thread(target=upload, daemon=True).start()
    supernode._call.closing.wait(0.3)
    assert not lost.is_set()
    supernode.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert lost.wait(20)


def test_a_question_of_too_many_parts_is_refused_before_any_is_fetched(
    supernode: SuperNode,
) -> None:
    many = PullMessagesResponse(message_object_trees=[tree(*[tree()] * 6000)])
    many.messages_list.add()
    with pytest.raises(SiteError, match="refused: a message of more than 16 parts"):
        supernode._keep(many)


@pytest.mark.parametrize("error", [ObjectPushError("a", 1, "b"), ObjectPullError("a", "gone")])
def test_a_superlink_killed_between_parts_of_a_message_is_a_lost_connection(
    tmp_path: Path, error: Exception
) -> None:
    provision(tmp_path, Address("localhost"), ["bern"])
    settings = read_site_file(tmp_path / "sites" / "bern" / "site.toml")
    supernode = SuperNode(
        settings.server,
        settings.load_key(),
        settings.load_authority(),
        Inbox(tmp_path / "inbox"),
        max_bytes=1,
    )

    with pytest.raises(LostError, match="lost a part of the message"), supernode._losing():
        raise error


@pytest.mark.parametrize("content", [b"", b"\xff\xff", b"\x0a\x00", b"x" * 1000])
def test_a_damaged_inbox_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    provision(tmp_path, Address("localhost"), ["bern"])
    settings = read_site_file(tmp_path / "sites" / "bern" / "site.toml")
    inbox = tmp_path / "work" / "inbox"
    inbox.mkdir(parents=True)
    (inbox / "message.pb").write_bytes(content)
    (tmp_path / "work" / "node").write_text("9" * 100)
    supernode = SuperNode(
        settings.server, settings.load_key(), settings.load_authority(), Inbox(inbox), max_bytes=1
    )

    assert Inbox(inbox).kept() is None
    assert supernode._still_active(in_doubt=False) is None
    assert not inbox.exists()
