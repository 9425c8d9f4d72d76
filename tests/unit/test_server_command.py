"""``nnUNetv2_federated_server``: its settings file."""

from __future__ import annotations

from pathlib import Path

from nnunetv2_federated.cli.server import command as server_command
from nnunetv2_federated.federation.settings import FederationSettings


def test_the_example_of_a_server_holds_known_and_allowed_settings() -> None:
    path = Path(__file__).parents[2] / "examples" / "deployment" / "federation.toml"

    # its server is named here: nothing was provisioned beside the example
    choices = server_command().parse(["--settings", str(path), "--server", "localhost"])

    assert choices.part(FederationSettings).min_replies == 2
    assert choices.credentials == path.parent / "credentials" / "server"
