"""The message that a site is answering, on disk: a killed site answers it when it is back."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Message
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from google.protobuf.message import DecodeError

from nnunetv2_federated.federation.errors import SiteError
from nnunetv2_federated.federation.files import private_folder, write_private
from nnunetv2_federated.flower.deployment.message_objects import put_together

logger = logging.getLogger(__name__)

_PART_NAME = re.compile(r"[0-9a-f]{64}")
_MESSAGE_FILE = "message.pb"


class Inbox:
    """A folder that holds at most one message: its envelope, and a file for each of its parts.

    Parameters
    ----------
    folder
        Private folder of the message; it is there only while there is a message.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def node_file(self) -> Path:
        """File with the number of the node that the message was sent to."""
        return self._folder.with_name("node")

    def keep(self, received: PullMessagesResponse, parts: Mapping[str, bytes]) -> None:
        """Write a message in place of the last one; the envelope last, which says that it is whole.

        Parameters
        ----------
        received
            Envelope of the message.
        parts
            Content of each part, by name.
        """
        self.forget()
        private_folder(self._folder)
        for name, content in parts.items():
            write_private(self._folder / name, content)
        write_private(self._folder / _MESSAGE_FILE, received.SerializeToString())

    def kept(self) -> PullMessagesResponse | None:
        """Return the envelope of the message that was not answered, if there is a whole one."""
        file = self._folder / _MESSAGE_FILE
        if not file.is_file():
            return None
        kept = PullMessagesResponse()
        try:
            kept.ParseFromString(file.read_bytes())
        except (DecodeError, OSError):
            logger.exception("the message that was kept cannot be read")
            kept.Clear()
        if len(kept.messages_list) == 1 and len(kept.message_object_trees) == 1:
            return kept
        self.forget()  # it is asked again by a server that sees the node activated anew
        return None

    def open(self, received: PullMessagesResponse) -> Message:
        """Return the message with this envelope, put together from its parts.

        Raises
        ------
        SiteError
            If its parts cannot be read, or do not make a message.
        """
        tree = received.message_object_trees[0]
        try:
            contents = {
                node.object_id: (self._folder / node.object_id).read_bytes()
                for node in iterate_object_tree(tree)
            }
        except OSError as error:
            raise SiteError(f"refused: the message cannot be read: {reason_of(error)}") from error
        return put_together(tree, contents)

    def forget(self) -> None:
        """Delete the message; first the envelope, which says that there is one."""
        (self._folder / _MESSAGE_FILE).unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)


def part_names(tree: ObjectTree) -> list[str]:
    """Return the names of a message's parts, which become names of files.

    Raises
    ------
    SiteError
        If one is not a SHA-256 in hex.
    """
    names = [node.object_id for node in iterate_object_tree(tree)]
    if not all(_PART_NAME.fullmatch(name) for name in names):
        raise SiteError("refused: a part of the message has no proper name")
    return names


def reason_of(error: OSError) -> str:
    """Say what the machine refused, without the path: that is for the site's log."""
    return f"{error.strerror or type(error).__name__}; the site's log says more"
