"""A site without nnU-Net: answers each question with its own content, in a process of its own.

``python plain_site.py site.toml [silent]``; a silent one keeps its questions to itself.
"""

from __future__ import annotations

import sys
import time
import tomllib
from pathlib import Path
from typing import cast

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Message

from nnunetv2_federated.flower.deployment.credentials import SITE_KEY, Address
from nnunetv2_federated.flower.deployment.fleet import Fleet, LostError
from nnunetv2_federated.flower.deployment.keyfiles import read_secret


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(site_file: Path, silent: bool) -> None:
    folder = site_file.parent
    server = Address.of(tomllib.loads(site_file.read_text())["server"])
    key = cast(EllipticCurvePrivateKey, load_ssh_private_key(read_secret(folder / SITE_KEY), None))
    authority = (folder / "ca.crt").read_bytes()
    while True:
        fleet = Fleet(server, key, authority, folder / "work" / "inbox", max_bytes=10**9)
        try:
            with fleet:
                for question in fleet.messages():
                    say(f"asked {question.metadata.message_type}")
                    if not silent:
                        fleet.answer(Message(question.content, reply_to=question))
        except LostError as error:
            say(str(error))
            time.sleep(0.5)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "silent" in sys.argv[2:])
