"""Certificates and keys: the right ones are trusted, and nobody gets another's secret."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import stat
import subprocess
import threading
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from flwr.supercore.primitives.asymmetric import sign_message, uses_nist_ec_curve, verify_signature

from nnunetv2_federated.cli import site
from nnunetv2_federated.cli.provision import main
from nnunetv2_federated.experiment.choices import Networked
from nnunetv2_federated.experiment.resolve import _same_sites, sites_with_keys
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.run import Run
from nnunetv2_federated.federation.settings import FederationSettings
from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.keyfiles import (
    check_private_folder,
    read_public_key,
    read_secret,
)
from nnunetv2_federated.flower.deployment.server import certificates
from nnunetv2_federated.flower.deployment.server.admission import Admission
from nnunetv2_federated.flower.deployment.server.credentials import fingerprints, provision, revoke
from nnunetv2_federated.flower.deployment.server.serve import ServerSettings
from nnunetv2_federated.flower.deployment.server.site_register import SiteRegister
from nnunetv2_federated.flower.deployment.signing import load_signing_key
from nnunetv2_federated.flower.deployment.site.new_key import identity, make_key
from nnunetv2_federated.secure.public_keys import fingerprint, parse_public_key

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
        patch.setattr(certificates, "datetime", ThreeDaysAgo)
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
        ([], "--server HOST[:PORT] is missing"),
        (["--revoke", "nobody"], "no such site"),
        (["--revoke", "../a"], "no such site"),
        (["--server", "localhost", "--revoke", "a"], "in two commands"),
        (["--server", "localhost", "--public-key", "absent.pub"], "is not there"),
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


# A key that is made at the site


def test_a_key_is_made_at_the_site_and_never_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both ends see the same fingerprints, once the bundle's files lie beside the key."""
    monkeypatch.chdir(tmp_path)
    site.main(["--new-key", "bern"])
    mark = fingerprint(read_public_key(tmp_path / "bern" / "bern.pub"))
    assert f"\n{mark}\n" in capsys.readouterr().out

    main(["credentials", "--server", "localhost", "--public-key", "bern/bern.pub"])

    said = capsys.readouterr().out
    assert mark in said
    assert "were made here" not in said
    coordinator = contents(tmp_path / "credentials")
    private = (tmp_path / "bern" / "site.key").read_bytes()
    assert private not in coordinator.values()
    bundle = tmp_path / "credentials" / "sites" / "bern"
    assert {file.name for file in bundle.iterdir()} == {"ca.crt", "coordinator.pub", "site.toml"}
    shutil.copytree(bundle, tmp_path / "bern", dirs_exist_ok=True)
    settings = site.read_site_file(tmp_path / "bern" / "site.toml")
    assert identity(settings) == fingerprints(tmp_path / "credentials")
    assert stat.S_IMODE((tmp_path / "bern").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "bern" / "site.key").stat().st_mode) == 0o600


def test_fingerprints_are_those_that_other_tools_show(tmp_path: Path) -> None:
    if not all(map(shutil.which, ("ssh-keygen", "openssl"))):
        pytest.skip("needs ssh-keygen and openssl")
    key = make_key("bern", tmp_path / "bern")
    provision(tmp_path / "c", SERVER, public_keys=[key.public])

    def output(*command: str | Path) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert output("ssh-keygen", "-lf", key.private).split()[1] == key.mark
    assert output("ssh-keygen", "-lf", key.public).split() == ["384", key.mark, "bern", "(ECDSA)"]
    shown = output(
        "openssl", "x509", "-noout", "-fingerprint", "-sha256", "-in", tmp_path / "c" / "ca.crt"
    )
    assert shown.strip().split("=")[1] == fingerprints(tmp_path / "c")["authority"]


def test_a_known_key_has_the_fingerprint_ssh_keygen_shows() -> None:
    """``ssh-keygen -lf`` said so of this key, whatever is installed here."""
    line = (
        b"ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBEmKSENjQEezOmxk"
        b"ZMy7opKgwFB9nkt5YRrYMjNuG5N87uRgg6CLrbo5wAdT/y6v0mKV0U2w0WZ2YB/++Tpockg= github.com"
    )
    mark = "SHA256:p2QAMXNIC1TJYWeIOttrVc98/R1BUFWu3/LiyKgUfQM"
    assert fingerprint(parse_public_key(line)) == mark


def test_a_key_is_never_replaced(tmp_path: Path) -> None:
    make_key("bern", tmp_path / "bern")
    before = contents(tmp_path)
    for name in ("bern", "oslo"):
        with pytest.raises(SettingsError, match="never replaced"):
            make_key(name, tmp_path / "bern")
    (tmp_path / "open").mkdir(mode=0o700)
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(SettingsError, match="chmod go-w"):
        make_key("bern", tmp_path / "open")
    assert contents(tmp_path) == before


SECURITY_KEY = (
    b"sk-ecdsa-sha2-nistp256@openssh.com AAAAInNrLWVjZHNhLXNoYTItbmlzdHAyNTZAb3BlbnNzaC5jb20AAAAI"
)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"ecdsa-sha2-nistp384",
        b"ecdsa-sha2-nistp384 AAAA",
        b"ecdsa-sha2-nistp384 \xff\xfe",
        b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl",
        SECURITY_KEY,
        b"two\nlines",
        b"a" * 5000,
        b"\x00" * 100,
        b"-----BEGIN PUBLIC KEY-----\nMHYw\n-----END PUBLIC KEY-----\n",
    ],
    ids=range(11),
)
def test_what_is_no_public_key_is_refused_before_anything_is_made(
    tmp_path: Path, content: bytes
) -> None:
    sent = tmp_path / "bern.pub"
    sent.write_bytes(content)
    with pytest.raises(SettingsError, match="is not the public key"):
        provision(tmp_path / "c", SERVER, public_keys=[sent])
    assert not (tmp_path / "c").exists()


def test_of_a_public_key_file_only_the_key_is_taken(tmp_path: Path) -> None:
    """Not a certificate, not two keys, no comment, no private key, no device, no folder."""
    good = make_key("bern", tmp_path / "made").public.read_bytes()
    sent = tmp_path / "bern.pub"
    sent.write_bytes(good.strip() + b" \x1b[31m$(reboot)\n")
    provision(tmp_path / "c", SERVER, public_keys=[sent])
    assert (tmp_path / "c" / "server" / "sites" / "bern.pub").read_bytes() == good

    def refused(path: Path, text: str) -> None:
        with pytest.raises(SettingsError, match=text):
            provision(tmp_path / "d", SERVER, public_keys=[path])
        assert not (tmp_path / "d").exists()

    sent.write_bytes(good + good)
    refused(sent, "one line")
    sent.write_bytes(good.replace(b"nistp384 ", b"nistp384-cert-v01@openssh.com ", 1))
    refused(sent, "one line")
    sent.write_bytes((tmp_path / "made" / "site.key").read_bytes())
    refused(sent, "is a private key: it should never have left")
    refused(Path("/dev/zero"), "not a file")
    refused(tmp_path, "not a file")
    for name in ("..pub", "a b.pub", "\x1b[31m.pub", "x" * 65 + ".pub"):
        odd = tmp_path / name
        odd.write_bytes(good)
        refused(odd, "name")


def test_a_key_has_one_name_and_a_name_one_key(tmp_path: Path) -> None:
    bern, oslo = (make_key(name, tmp_path / name).public for name in ("bern", "oslo"))
    again, upper = tmp_path / "again.pub", tmp_path / "BERN.pub"
    again.write_bytes(bern.read_bytes())
    upper.write_bytes(oslo.read_bytes())
    with pytest.raises(SettingsError, match="sent the same key"):
        provision(tmp_path / "c", SERVER, public_keys=[bern, again])
    with pytest.raises(SettingsError, match="given twice"):
        provision(tmp_path / "c", SERVER, ["bern"], public_keys=[bern])
    provision(tmp_path / "c", SERVER, public_keys=[bern])
    before = contents(tmp_path)

    with pytest.raises(SettingsError, match="is that of bern already"):
        provision(tmp_path / "c", SERVER, public_keys=[again])
    with pytest.raises(SettingsError, match="there is a site bern"):
        provision(tmp_path / "c", SERVER, public_keys=[upper])
    oslo.rename(tmp_path / "bern.pub")
    with pytest.raises(SettingsError, match="bern has another key"):
        provision(tmp_path / "c", SERVER, public_keys=[tmp_path / "bern.pub"])
    assert provision(tmp_path / "c", SERVER, public_keys=[bern]) == []
    (tmp_path / "bern.pub").rename(oslo)

    assert contents(tmp_path) == before


# Revocation


def test_a_revoked_key_stays_outside_under_every_name_and_its_name_gets_a_new_one(
    tmp_path: Path,
) -> None:
    old = make_key("bern", tmp_path / "old")
    provision(tmp_path / "c", SERVER, ["oslo"], public_keys=[old.public])

    assert revoke(tmp_path / "c", ["bern"]) == {"bern": old.mark}

    register = SiteRegister(tmp_path / "c" / "server")
    assert list(register.keys()) == ["oslo"]
    other = tmp_path / "basel.pub"
    other.write_bytes(old.public.read_bytes())
    for sent in (old.public, other):
        with pytest.raises(SettingsError, match="was revoked and stays so"):
            provision(tmp_path / "c", SERVER, public_keys=[sent])
    shutil.copy(other, register.folder / "sites")  # past the command
    assert list(register.keys()) == ["oslo"]
    new = make_key("bern", tmp_path / "new")
    provision(tmp_path / "c", SERVER, public_keys=[new.public])
    assert fingerprint(register.keys()["bern"]) == new.mark


def test_a_key_made_here_and_revoked_is_not_handed_out_again(tmp_path: Path) -> None:
    provision(tmp_path, SERVER, ["bern"])
    revoke(tmp_path, ["bern"])
    with pytest.raises(SettingsError, match="was revoked and stays so: remove that folder"):
        provision(tmp_path, SERVER, ["bern"])
    own = make_key("bern", tmp_path / "hospital").public
    with pytest.raises(SettingsError, match="holds a private key that was made here"):
        provision(tmp_path, SERVER, public_keys=[own])
    shutil.rmtree(tmp_path / "sites" / "bern")
    assert provision(tmp_path, SERVER, ["bern"]) == [tmp_path / "sites" / "bern"]


def test_a_damaged_list_of_revoked_keys_lets_nobody_in(tmp_path: Path) -> None:
    provision(tmp_path, SERVER, ["bern", "oslo"])
    revoke(tmp_path, ["bern"])
    revoked = tmp_path / "server" / "revoked_keys"
    revoked.write_bytes(revoked.read_bytes()[:100])
    with pytest.raises(SettingsError, match="is damaged, so nobody is let in"):
        SiteRegister(tmp_path / "server").keys()


def test_who_is_revoked_or_has_a_new_key_is_turned_out_of_a_run_once(tmp_path: Path) -> None:
    class Doorkeeper:
        def __init__(self) -> None:
            self.told: list[int] = []

        def unregister(self, node: int) -> None:
            self.told.append(node)

    provision(tmp_path, SERVER, ["bern", "lyon", "oslo"])
    doorkeeper = Doorkeeper()
    register = SiteRegister(tmp_path / "server")
    admission = Admission(register, doorkeeper, {"bern": 1, "lyon": 2, "oslo": 3})
    assert admission.names([1, 2, 3, 4]) == {1: "bern", 2: "lyon", 3: "oslo"}

    revoke(tmp_path, ["bern"])
    (register.folder / "sites" / "lyon.pub").unlink()
    register.add("bern", read_public_key(make_key("bern", tmp_path / "new").public))

    for _ in range(2):
        assert admission.refused() == dict.fromkeys((1, 2), "its key was revoked")
    assert admission.names([1, 2, 3]) == {3: "oslo"}
    admission.turn_out(3, "stored too much")
    assert admission.names([1, 2, 3]) == {}
    assert doorkeeper.told == [1, 2, 3]


# Keys that others can read


@pytest.fixture
def secrets(tmp_path: Path) -> dict[str, Path]:
    provision(tmp_path / "c", SERVER, ["bern"])
    server = tmp_path / "c" / "server"
    return {
        "site": tmp_path / "c" / "sites" / "bern" / "site.key",
        "coordinator": server / "coordinator.key",
        "server": server / "server.key",
        "ca": tmp_path / "c" / "ca.key",
    }


def use(name: str, path: Path) -> None:
    """Read a key as those do whose key it is."""
    if name == "site":
        site.read_site_file(path.with_name("site.toml")).load_key()
    elif name == "coordinator":
        load_signing_key(path)
    elif name == "server":
        ServerSettings(path.parent, SERVER).check()
    else:
        provision(path.parent, SERVER, renew=True)


@pytest.mark.parametrize("name", ["site", "coordinator", "server", "ca"])
def test_keys_that_others_can_read_or_replace_are_refused(
    secrets: dict[str, Path], name: str
) -> None:
    path = secrets[name]
    use(name, path)
    for mode in (0o640, 0o604, 0o620, 0o601, 0o666):
        path.chmod(mode)
        with pytest.raises(SettingsError, match=f"is open to others .*: chmod 600 {path}"):
            use(name, path)
    path.chmod(0o400)
    use(name, path)
    path.parent.chmod(0o755)
    use(name, path)
    for mode in (0o770, 0o707, 0o1777):
        path.parent.chmod(mode)
        with pytest.raises(
            SettingsError, match=f"may be written by others .*: chmod go-w {path.parent}"
        ):
            use(name, path)


@pytest.mark.parametrize("name", ["site", "coordinator", "server", "ca"])
def test_keys_of_another_user_are_refused(secrets: dict[str, Path], name: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a file away")
    path = secrets[name]
    os.chown(path, 12345, -1)
    with pytest.raises(SettingsError, match="belongs to user 12345, not to 0"):
        use(name, path)
    os.chown(path, 0, -1)
    os.chown(path.parent, 12345, -1)
    with pytest.raises(SettingsError, match="belongs to user 12345, not to 0"):
        use(name, path)


def test_a_link_does_not_hide_where_a_key_lies(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    key = make_key("bern", tmp_path / "open" / "bern")
    (tmp_path / "link").symlink_to(key.private)
    assert read_secret(tmp_path / "link") == key.private.read_bytes()
    (tmp_path / "open" / "bern").chmod(0o777)
    with pytest.raises(SettingsError, match="may be written by others"):
        read_secret(tmp_path / "link")
    for odd in (tmp_path, Path("/dev/null"), tmp_path / "absent"):
        with pytest.raises(SettingsError, match=r"^the key .* (is not a file|cannot be read)"):
            read_secret(odd)


def test_a_database_folder_of_others_is_refused_and_a_new_one_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "database"
    check_private_folder(folder, "--superlink-database")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for mode in (0o777, 0o750, 0o701):
        folder.chmod(mode)
        with pytest.raises(SettingsError, match=rf"^--superlink-database .*chmod 700 {folder}"):
            check_private_folder(folder, "--superlink-database")
    folder.chmod(0o700)
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="cannot be used"):
        check_private_folder(tmp_path / "file", "--superlink-database")
    if os.geteuid() == 0:
        (folder / "superlink_9092.db").touch()
        for planted in (folder / "superlink_9092.db", folder):
            os.chown(planted, 12345, -1)
            with pytest.raises(SettingsError, match="belongs to user 12345"):
                check_private_folder(folder, "--superlink-database")
            os.chown(planted, 0, -1)


def test_a_run_goes_on_with_the_sites_that_were_not_revoked_since(tmp_path: Path) -> None:
    """``--c`` wants the sites the run was started with, and cannot have a revoked one."""
    provision(tmp_path, SERVER, ["bern", "lyon", "oslo"])
    options = Networked(server="localhost", credentials=tmp_path / "server")

    def run(*sites: str) -> Run:
        return Run(
            "Dataset901_Balls",
            "2d",
            0,
            "t",
            "p",
            "cpu",
            FederationSettings(),
            (),
            remote_sites=sites,
        )

    started = run("bern", "lyon", "oslo")
    assert _same_sites(options, run("bern", "lyon", "oslo"), started)
    assert not _same_sites(options, run("lyon", "oslo"), started)

    revoke(tmp_path, ["bern"])

    assert _same_sites(options, run(*sites_with_keys(options)), started)
    assert not _same_sites(options, run("oslo"), started)
    assert not _same_sites(options, run(), started)
