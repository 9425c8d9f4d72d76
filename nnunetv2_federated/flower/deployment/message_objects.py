"""Flower sends a message in parts; here they are put together, whoever may have sent them."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Message
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
from flwr.proto.message_pb2 import (
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from nnunetv2_federated.federation.errors import SiteError

OVERLOADED = (500, 502, 503, 504)
"""HTTP statuses of a server, or a proxy before it, that may answer later.

A SuperLink fails with 500 while its database is locked: many sites, or a large message, suffice.
"""

GIVE_UP_SECONDS = 300.0
"""Seconds after which a SuperLink is given up that fails each time."""

_DEEPEST = 5
"""Levels of a message's parts: message, records, record of arrays, array, chunk of it."""
_BESIDE_CHUNKS = 16
"""Parts of a message that are no chunks, with room for some more records."""


def check_parts(tree: ObjectTree, max_bytes: int) -> None:
    """Refuse a message of more parts than one of that size can have, before any is fetched.

    Parts cost a SuperLink time, however small they are.

    Parameters
    ----------
    tree
        Names of the parts, as they contain each other.
    max_bytes
        Bytes that all parts together may have.

    Raises
    ------
    SiteError
        If there are too many, or they contain each other too deeply.
    """
    most = _BESIDE_CHUNKS + max_bytes // FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
    level, parts, depth = [tree], 0, 0
    while level:
        parts, depth = parts + len(level), depth + 1
        if parts > most or depth > _DEEPEST:
            raise SiteError(f"refused: a message of more than {most} parts, or nested too deeply")
        level = [child for part in level for child in part.children]


def push_part(
    push: Callable[[PushObjectRequest], PushObjectResponse],
    pull: Callable[[PullObjectRequest], PullObjectResponse],
    part: PushObjectRequest,
) -> PushObjectResponse:
    """Send a part; that the SuperLink has it already is as good.

    It refuses a part it knows. So it does when its first answer was lost with a bad line, or when
    it was killed between storing and answering.
    """
    response = push(part)
    if not response.stored:
        known = pull(
            PullObjectRequest(node=part.node, run_id=part.run_id, object_id=part.object_id)
        )
        response.stored = known.object_available
    return response


def limited(pull: Callable[[str], bytes], max_bytes: int) -> Callable[[str], bytes]:
    """Wrap what fetches a part by name: all parts together may not be larger than that.

    Raises
    ------
    SiteError
        By the result, if they are.
    """
    total = 0

    def pull_limited(name: str) -> bytes:
        nonlocal total
        content = pull(name)
        total += len(content)
        if total > max_bytes:
            raise SiteError(f"refused: a message of more than {max_bytes} bytes")
        return content

    return pull_limited


def put_together(tree: ObjectTree, contents: dict[str, bytes]) -> Message:
    """Make a message of its parts.

    Raises
    ------
    SiteError
        If they are no message.
    """
    try:
        message = inflate_object_from_contents(tree.object_id, contents)
    except Exception as error:  # what strangers send breaks Flower's readers in many ways
        raise SiteError(f"refused: the message cannot be read: {error}") from error
    if not isinstance(message, Message):
        raise SiteError("refused: not a message")
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message
