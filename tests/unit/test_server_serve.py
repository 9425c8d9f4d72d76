"""What the coordinator's side is given before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.files import only_one
from nnunetv2_federated.federation.messages import SiteSurvey
from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.server.serve import ServerSettings, check_listening
from nnunetv2_federated.flower.deployment.server.serve_once import agreed_sites


def test_what_listens_beyond_this_machine_must_be_forced() -> None:
    public = Address("192.0.2.7", 9092)
    check_listening(Address("127.0.0.1", 9093), force=False)
    check_listening(public, force=True)
    with pytest.raises(SettingsError, match="could then register keys"):
        check_listening(public, force=False)


def test_credentials_without_sites_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no site's key there"):
        ServerSettings(tmp_path, Address("localhost")).site_keys()


def test_two_commands_never_share_the_files_of_a_superlink(tmp_path: Path) -> None:
    server = ServerSettings(tmp_path / "credentials", Address("localhost"))
    folder = tmp_path / "planning"
    with (
        only_one(tmp_path / "planning.lock", "the first"),
        pytest.raises(SettingsError, match=r"planning\.lock is held: another command is at work"),
        agreed_sites(
            folder,
            server,
            ["bern"],
            kind="survey",
            proposal="{}",
            read=SiteSurvey.from_json,
            wait_for_sites=1.0,
            say=print,
        ),
    ):
        pass
    assert not folder.exists()
