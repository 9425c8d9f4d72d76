"""Certificates and keys: the right ones are trusted, and nobody gets another's secret."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from flwr.supercore.primitives.asymmetric import sign_message, uses_nist_ec_curve, verify_signature

from nnunetv2_federated.cli.provision import main
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.flower.deployment import credentials
from nnunetv2_federated.flower.deployment.credentials import Address, provision

SERVER = Address("localhost")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def handshake(server: Path, ca: Path, name: str) -> str | None:
    """Connect as a site that trusts ``ca`` and wants to reach ``name``; what went wrong, if any."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server / "server.crt", server / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            try:
                context.wrap_socket(connection, server_side=True).close()
            except ssl.SSLError:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        site = ssl.create_default_context(cafile=str(ca))
        site.verify_flags |= ssl.VERIFY_X509_STRICT
        try:
            with (
                socket.create_connection(listener.getsockname()) as plain,
                site.wrap_socket(plain, server_hostname=name),
            ):
                return None
        except ssl.SSLCertVerificationError as error:
            return str(error.verify_message)
        finally:
            thread.join()


def test_a_site_trusts_the_server_it_was_told_of_and_no_other(tmp_path: Path) -> None:
    provision(tmp_path / "a", Address("192.0.2.7", 443), ["hannover"])
    provision(tmp_path / "b", SERVER, [])
    server, ca = tmp_path / "a" / "server", tmp_path / "a" / "sites" / "hannover" / "ca.crt"

    assert handshake(server, ca, "192.0.2.7") is None
    assert handshake(server, ca, "localhost") is None
    assert "mismatch" in str(handshake(server, ca, "fl.example.org"))
    assert handshake(server, tmp_path / "b" / "ca.crt", "localhost") is not None


def test_the_server_knows_a_site_by_its_key(tmp_path: Path) -> None:
    """Signed and verified by Flower's own functions, from the files as they are handed out."""
    provision(tmp_path, SERVER, ["hannover", "guangzhou"])
    bundle, known = tmp_path / "sites" / "hannover", tmp_path / "server" / "sites"
    private = load_ssh_private_key((bundle / "site.key").read_bytes(), None)
    signature = sign_message(private, b"hello")

    own, other = (
        load_ssh_public_key((known / f"{site}.pub").read_bytes())
        for site in ("hannover", "guangzhou")
    )

    assert uses_nist_ec_curve(own)
    assert verify_signature(own, b"hello", signature)
    assert not verify_signature(other, b"hello", signature)


def test_a_bundle_holds_no_secret_but_its_own(tmp_path: Path) -> None:
    provision(tmp_path, SERVER, ["hannover", "guangzhou"])

    secrets = {p: content for p, content in contents(tmp_path).items() if b"PRIVATE" in content}

    assert {str(path.relative_to(tmp_path)) for path in secrets} == {
        "ca.key",
        "server/server.key",
        "server/coordinator.key",
        "sites/hannover/site.key",
        "sites/guangzhou/site.key",
    }
    assert len(set(secrets.values())) == 5
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in secrets)


def test_adding_a_site_changes_nothing_of_the_others(tmp_path: Path) -> None:
    """Neither the authority's key nor the other bundles need to be there."""
    provision(tmp_path, SERVER, ["hannover"])
    (tmp_path / "ca.key").unlink()
    handed_over = tmp_path / "sites" / "hannover"
    handed_over.rename(tmp_path.with_name("hannover"))
    before = contents(tmp_path)

    made = provision(tmp_path, SERVER, ["hannover", "guangzhou"])

    assert made == [tmp_path / "sites" / "guangzhou"]
    assert before.items() <= contents(tmp_path).items()
    assert not handed_over.exists()


def test_a_renewed_certificate_is_trusted_by_the_same_bundles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ThreeDaysAgo(datetime):
        @classmethod
        def now(cls, tz: tzinfo) -> datetime:
            return datetime.now(tz) - timedelta(days=3)

    with monkeypatch.context() as patch:
        patch.setattr(credentials, "datetime", ThreeDaysAgo)
        provision(tmp_path, SERVER, ["hannover"], days=2)
    bundle = tmp_path / "sites" / "hannover"
    before = contents(bundle)
    assert "expired" in str(handshake(tmp_path / "server", bundle / "ca.crt", "localhost"))
    with pytest.raises(SettingsError, match=r"expired on .* --renew"):
        provision(tmp_path, SERVER, [])

    assert provision(tmp_path, SERVER, [], renew=True) == [tmp_path / "server"]

    assert handshake(tmp_path / "server", bundle / "ca.crt", "localhost") is None
    assert contents(bundle) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--server", "localhost", "--sites", "../b"], "letters, digits"),
        (["--server", "localhost", "--sites", "a", "A"], "given twice"),
        (["--server", "localhost:0"], "from 1 to 65535"),
        (["--server", "localhost:no"], "from 1 to 65535"),
        (["--server", "https://localhost/"], "--server https://localhost/"),
        (["--server", "::1"], "square brackets"),
        (["--server", ""], "HOST:PORT"),
        (["--server", "localhost", "--days", "0"], "--days 0"),
        (["--server", "other.example.org"], "is not for other.example.org"),
        (["--server", "localhost", "--renew"], "ca.key is not there"),
    ],
)
def test_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    provision(tmp_path, SERVER, [])
    (tmp_path / "ca.key").unlink()
    before = contents(tmp_path)

    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), *arguments])

    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    assert contents(tmp_path) == before


def test_no_second_authority_beside_what_the_first_signed(tmp_path: Path) -> None:
    provision(tmp_path, SERVER, ["hannover"])
    (tmp_path / "ca.crt").unlink()

    with pytest.raises(SettingsError, match="bring it back"):
        provision(tmp_path, SERVER, ["guangzhou"])


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("fl.example.org", Address("fl.example.org", 9092)),
        ("fl.example.org:443", Address("fl.example.org", 443)),
        ("[::1]:443", Address("::1", 443)),
        ("[::1]", Address("::1", 9092)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert Address.of(text) == address
    assert Address.of(str(address)) == address
