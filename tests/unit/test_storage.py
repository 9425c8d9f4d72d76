"""The SuperLink's database as it is seen from outside, made by Flower's own classes."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

import pytest
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.object_store.sql_object_store import SqlObjectStore

from nnunetv2_federated.federation.errors import FederationError
from nnunetv2_federated.flower.deployment.server.storage import (
    Storage,
    Stored,
    Unwanted,
    find_unwanted,
)


def name(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> SqlObjectStore:
    made = SqlObjectStore(str(tmp_path / "superlink.db"), verify=False)
    made.initialize()
    return made


def test_a_message_is_as_large_as_what_has_come_of_its_parts(
    store: SqlObjectStore, tmp_path: Path
) -> None:
    """Two share a part; one part of the second has not come."""
    shared, own, missing = (ObjectTree(object_id=name(part)) for part in ("s", "o", "m"))
    inner = ObjectTree(object_id=name("inner"), children=[shared, own])
    store.preregister(1, ObjectTree(object_id=name("first"), children=[inner]))
    store.preregister(1, ObjectTree(object_id=name("second"), children=[shared, missing]))
    sizes = {"s": 5_000_000, "o": 300, "inner": 20, "first": 1, "second": 2}
    for part, size in sizes.items():
        store.put(name(part), bytes(size))
    storage = Storage(tmp_path / "superlink.db")

    assert storage.messages() == {
        name("first"): Stored(5_000_321, None),
        name("second"): Stored(5_000_002, None),
    }
    store.delete(name("first"))
    assert storage.messages() == {name("second"): Stored(5_000_002, None)}


def test_an_answer_that_the_server_has_not_seen_is_its_nodes(
    store: SqlObjectStore, tmp_path: Path
) -> None:
    """SQLite has no unsigned numbers: a node of 2**63 and more is stored as a negative one."""
    for node in (5, 2**64 - 5):
        store.preregister(1, ObjectTree(object_id=name(str(node))))
        with sqlite3.connect(tmp_path / "superlink.db") as database:
            database.execute(
                "INSERT INTO message_res (message_id, src_node_id) VALUES (?, ?)",
                (name(str(node)), node - 2**64 if node >= 2**63 else node),
            )

    found = Storage(tmp_path / "superlink.db").messages()

    assert {message.node for message in found.values()} == {5, 2**64 - 5}


def test_pages_that_are_free_again_are_room(store: SqlObjectStore, tmp_path: Path) -> None:
    storage = Storage(tmp_path / "superlink.db")
    store.preregister(1, ObjectTree(object_id=name("a")))
    store.put(name("a"), bytes(40_000_000))
    reusable = storage.reusable()
    store.delete(name("a"))
    assert storage.reusable() - reusable == pytest.approx(40_000_000, rel=0.01)


def test_a_run_ends_in_one_line_before_the_disk_is_full(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "superlink.db")  # which is not there yet
    assert storage.messages() == {}
    storage.check_room(0)
    with pytest.raises(
        FederationError, match=rf"{tmp_path}, has room for \d+ MB, and 1430511538 MB"
    ):
        storage.check_room(10**15)  # 1.5e15 / 2**20 = 1430511474.6, and 64


def test_who_stores_more_than_an_answer_is_told_from_what_is_nobodys() -> None:
    stored = {
        "question": Stored(10**9, None),
        "coming": Stored(100, None),
        "too much": Stored(101, None),
        "not seen": Stored(100, 1),
        "not seen, too much": Stored(101, 3),
        "forged": Stored(1, None),
        "of one who was not asked": Stored(1, 9),
    }
    most = {1: 100, 2: 100, 3: 100}

    found = find_unwanted(stored, {"question"}, {"coming": 1, "too much": 2}, most)

    assert found == Unwanted(
        sites={2: 101, 3: 101},
        messages=["too much", "not seen, too much", "forged", "of one who was not asked"],
    )
