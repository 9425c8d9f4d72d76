"""Time that stands still, and what a SuperLink answers, for tests without one."""

from __future__ import annotations

import time

import httpx
import pytest
from flwr.proto.message_pb2 import ObjectTree


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def http_error(status: int) -> httpx.HTTPStatusError:
    response = httpx.Response(status, request=httpx.Request("POST", "https://a"))
    return httpx.HTTPStatusError("", request=response.request, response=response)


def tree(*children: ObjectTree) -> ObjectTree:
    return ObjectTree(object_id="0" * 64, children=children)
