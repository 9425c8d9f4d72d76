"""The settings of a site, ``site.toml``."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.server.credentials import provision
from nnunetv2_federated.flower.deployment.site.site_file import read_site_file


def test_the_bundle_can_be_read_as_it_is_handed_out(tmp_path: Path) -> None:
    provision(tmp_path, Address("fl.example.org", 443), ["bern"])

    settings = read_site_file(tmp_path / "sites" / "bern" / "site.toml")

    assert (settings.name, settings.server) == ("bern", Address("fl.example.org", 443))
    assert settings.load_authority() == (tmp_path / "ca.crt").read_bytes()
    assert settings.load_key().curve.name == "secp384r1"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("rounds = 3", "rounds is unknown; known are"),
        ("max_rounds = 0", "must be a whole number above 0"),
        ("max_hours = 'ten'", "must be a number above 0"),
        ("max_evaluations = 1.5", "max_evaluations 1.5: must be a whole number above 0"),
        ("max_hours = inf", "must be a number above 0"),
        ("max_message_mb = 'x'", "max_message_mb 'x' must be a number above 0"),
        ("max_message_mb = nan", "must be a number above 0"),
        ("allowed_modules = 'os'", "must be a list of Python modules"),
        ("allowed_modules = ['a/b']", "must be a list of Python modules"),
        ("work = 5", "work is missing, or not a text"),
        ("]", "cannot be read"),
    ],
)
def test_a_wrong_site_file_gets_one_line(tmp_path: Path, line: str, text: str) -> None:
    provision(tmp_path, Address("localhost"), ["bern"])
    path = tmp_path / "sites" / "bern" / "site.toml"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(SettingsError, match=text):
        read_site_file(path)
    path.write_text('name = "bern"\n')
    with pytest.raises(SettingsError, match="server is missing"):
        read_site_file(path)
