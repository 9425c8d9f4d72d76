"""A site that takes a question and never answers; give its site.toml and the question's kind."""

from __future__ import annotations

import functools
import sys
import threading
from pathlib import Path

from flwr.app import Message

from nnunetv2_federated.flower.deployment.site import serve as site
from nnunetv2_federated.flower.deployment.site.guarded_site import GuardedSite
from nnunetv2_federated.flower.deployment.site.local_site import LocalSite
from nnunetv2_federated.flower.deployment.site.site_file import read_site_file


def main() -> None:
    settings = read_site_file(Path(sys.argv[1]))
    say = functools.partial(print, flush=True)
    honest = site.Responder.answer

    def answer(responder: site.Responder, message: Message) -> Message:
        if message.metadata.message_type == sys.argv[2]:
            say("says nothing")
            threading.Event().wait()
        return honest(responder, message)

    setattr(site.Responder, "answer", answer)  # noqa: B010  # mypy: it replaces a method
    guarded = GuardedSite(LocalSite(settings.name, "901", settings.work, "cpu"), ask=bool)
    site.serve(settings, guarded, say, threading.Event())


if __name__ == "__main__":
    main()
