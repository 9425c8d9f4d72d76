"""A site's process, without a server."""

from __future__ import annotations

import threading
from pathlib import Path

from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.server.credentials import provision
from nnunetv2_federated.flower.deployment.site.guarded_site import GuardedSite
from nnunetv2_federated.flower.deployment.site.local_site import LocalSite
from nnunetv2_federated.flower.deployment.site.serve import serve
from nnunetv2_federated.flower.deployment.site.site_file import read_site_file


def test_a_site_says_that_nobody_answers_and_goes_on_trying(tmp_path: Path) -> None:
    provision(tmp_path, Address("127.0.0.1", 9), ["bern"])  # nobody listens at "discard"
    settings = read_site_file(tmp_path / "sites" / "bern" / "site.toml")
    said: list[str] = []
    stopped = threading.Event()
    guarded = GuardedSite(LocalSite("bern", "901", tmp_path, "cpu"))

    threading.Timer(3, stopped.set).start()
    serve(settings, guarded, said.append, stopped)

    assert len(said) == 1  # not once for each attempt
    assert said[0].startswith("no connection to 127.0.0.1:9: ")
