"""What the coordinator's side is given before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.server.serve import ServerSettings, check_listening


def test_what_listens_beyond_this_machine_must_be_forced() -> None:
    public = Address("192.0.2.7", 9092)
    check_listening(Address("127.0.0.1", 9093), force=False)
    check_listening(public, force=True)
    with pytest.raises(SettingsError, match="could then register keys"):
        check_listening(public, force=False)


def test_credentials_without_sites_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no site's key there"):
        ServerSettings(tmp_path, Address("localhost")).site_keys()
