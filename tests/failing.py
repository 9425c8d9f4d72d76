"""Run a command of ours for which a fifth of the requests to the SuperLink ends with HTTP 500.

Half of these have been carried out all the same, as when a database is locked at their end.
Arguments: the module to run, with its arguments.
"""

from __future__ import annotations

import random
import runpy
import sys
from typing import Any

import httpx

_chance = random.Random(1)  # noqa: S311  # nothing secret
_send = httpx.Client.send


def send(client: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
    fate = _chance.randrange(10)
    response = None if fate == 0 else _send(client, request, **options)
    if fate > 1 and response is not None:
        return response
    return httpx.Response(500, request=request, text="database is locked")


def main() -> None:
    setattr(httpx.Client, "send", send)  # noqa: B010  # mypy: it replaces a method
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
