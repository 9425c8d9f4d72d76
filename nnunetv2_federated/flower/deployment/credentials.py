"""Who may join: a certificate authority, the server's certificate, and a key pair per site.

The certificate lets a site recognise the server, the key pair lets the server recognise the site,
and what the coordinator asks is signed with a key of its own. The sites' keys are what Flower 1.41
and 1.42 take: ECDSA on a NIST curve, in OpenSSH's format.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.planning import PLAIN_NAME

COORDINATOR_KEY, COORDINATOR_PUB = "coordinator.key", "coordinator.pub"
DEFAULT_PORT = 9092
DEFAULT_DAYS = 730
CA_DAYS = 3650
_CLOCKS_MAY_DIFFER = timedelta(hours=1)
_SECRET, _PUBLIC = 0o600, 0o644
_CA_NAME = "nnunetv2-federated CA"


SITE_TOML = """\
name = "{site}"
server = "{server}"
ca = "ca.crt"
key = "site.key"
coordinator = "coordinator.pub"
"""

NGINX = """\
# Lets sites reach the fleet API and nothing else of the SuperLink, which listens on loopback.
# Start: nginx -p FOLDER_OF_THIS_FILE -c nginx.conf
pid nginx.pid;
error_log nginx-error.log;
events {}
http {
  access_log off;
  client_body_temp_path nginx-temp;
  proxy_temp_path nginx-temp;
  fastcgi_temp_path nginx-temp;
  uwsgi_temp_path nginx-temp;
  scgi_temp_path nginx-temp;
  client_max_body_size 16m;
  server {
    listen %(port)d ssl;
    ssl_certificate server.crt;
    ssl_certificate_key server.key;
    ssl_protocols TLSv1.2 TLSv1.3;
    location /v1/fleet/ {
      proxy_pass https://%(listen)s;
      proxy_ssl_verify on;
      proxy_ssl_name localhost;
      proxy_ssl_trusted_certificate ca.crt;
      proxy_http_version 1.1;
      proxy_buffering off;
      proxy_request_buffering off;
      proxy_read_timeout 120s;
    }
    location / {
      return 403;
    }
  }
}
"""


@dataclass(frozen=True)
class Address:
    """Where sites find the server."""

    host: str
    port: int = DEFAULT_PORT

    @classmethod
    def of(cls, text: str) -> Address:
        """Read ``HOST`` or ``HOST:PORT``; an IPv6 address goes into square brackets.

        Raises
        ------
        SettingsError
            If it is neither.
        """
        host, separator, port = text.rpartition(":")
        if not separator or text.endswith("]"):
            host, port = text, str(DEFAULT_PORT)
        bare = host.removeprefix("[").removesuffix("]")
        allowed = bare.isascii() and bare and not set(bare) & set("/@ \\")
        if not allowed or (":" in host and not host.startswith("[")):
            raise SettingsError(
                f"--server {text}: give HOST or HOST:PORT, as in fl.example.org:{DEFAULT_PORT}; an "
                "IPv6 address in square brackets."
            )
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise SettingsError(f"--server {text}: the port must be a number from 1 to 65535.")
        return cls(bare, int(port))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def behind_proxy(self) -> Address:
        """Where the SuperLink listens for the proxy that stands at this address."""
        return Address("127.0.0.1", self.port + 1 if self.port < 65535 else self.port - 1)


def provision(
    folder: Path,
    server: Address,
    sites: Sequence[str],
    *,
    days: int = DEFAULT_DAYS,
    renew: bool = False,
) -> list[Path]:
    """Make what is not there yet: authority, server certificate, and a bundle for each site.

    ``folder/ca.key`` signs certificates and is needed for nothing else. ``folder/server`` goes to
    the coordinator, ``folder/sites/NAME`` to that site: it holds the site's own private key and
    nothing secret of anyone else. What exists is never replaced, except by ``renew``.

    Parameters
    ----------
    folder
        Made if need be.
    server
        Written into the certificate and the bundles.
    sites
        Their names.
    days
        How long the server's certificate is valid.
    renew
        Make a new server certificate with the same authority: sites need nothing new.

    Returns
    -------
    list of Path
        Folders and files that were made.

    Raises
    ------
    SettingsError
        If a name or number is not allowed, the certificate there is for another server or has
        expired, or the authority's key is needed and not there.
    """
    _check(sites, days)
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    if not (folder / "ca.crt").is_file():
        if (folder / "server").exists():
            raise SettingsError(
                f"{folder / 'ca.crt'} is not there, but what it signed is: bring it back, or start "
                "in an empty folder."
            )
        _make_authority(folder)
        made.append(folder / "ca.crt")
    if not (folder / "server" / COORDINATOR_KEY).is_file():
        _make_coordinator(folder / "server")
    if renew or not (folder / "server" / "server.crt").is_file():
        _make_server(folder, server, days)
        made.append(folder / "server")
    else:
        _check_server(folder / "server" / "server.crt", server)
    for site in sites:
        known = folder / "server" / "sites" / f"{site}.pub"
        if known.is_file():  # its bundle may have been handed over and removed here
            continue
        bundle = folder / "sites" / site
        if not bundle.is_dir():
            _make_site(bundle, server, folder)
        _write(known, (bundle / "site.pub").read_bytes(), _PUBLIC)
        made.append(bundle)
    return made


def _check(sites: Sequence[str], days: int) -> None:
    for site in sites:
        if not PLAIN_NAME.fullmatch(site) or len(site) > 64:
            raise SettingsError(
                f"--sites {site!r}: a name is letters, digits, - and _, at most 64 of them."
            )
    if len({site.casefold() for site in sites}) < len(sites):
        raise SettingsError("--sites: a name is given twice.")
    if not 0 < days <= CA_DAYS:
        raise SettingsError(f"--days {days}: must be from 1 to {CA_DAYS}.")


def _make_authority(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _CA_NAME)])
    certificate = (
        _certificate(name, name, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    _write(folder / "ca.key", _pem(key), _SECRET)
    _write(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM), _PUBLIC)


def _make_server(folder: Path, server: Address, days: int) -> None:
    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    if not (folder / "ca.key").is_file():
        raise SettingsError(
            f"{folder / 'ca.key'} is not there: the server's certificate is signed with it. Bring "
            "it back for this command."
        )
    signer = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise SettingsError(f"{folder / 'ca.key'} is not the key this command made.")
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, server.host[:64])])
    names = dict.fromkeys((server.host, "localhost", "127.0.0.1"))  # the server calls itself too
    certificate = (
        _certificate(name, authority.subject, key.public_key(), days)
        .add_extension(x509.SubjectAlternativeName([_general_name(n) for n in names]), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA384())
    )
    target = folder / "server"
    (target / "server.crt").unlink(missing_ok=True)  # last: it stands for all of them
    _write(target / "server.toml", f'server = "{server}"\n'.encode(), _PUBLIC)
    proxy = NGINX % {"port": server.port, "listen": server.behind_proxy}
    _write(target / "nginx.conf", proxy.encode(), _PUBLIC)
    _write(target / "ca.crt", (folder / "ca.crt").read_bytes(), _PUBLIC)
    _write(target / "server.key", _pem(key), _SECRET)
    _write(target / "server.crt", certificate.public_bytes(serialization.Encoding.PEM), _PUBLIC)


def _make_coordinator(target: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _write(target / COORDINATOR_PUB, public, _PUBLIC)
    _write(target / COORDINATOR_KEY, _pem(key), _SECRET)


def _make_site(bundle: Path, server: Address, folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    settings = SITE_TOML.format(site=bundle.name, server=server)
    with _whole_folder(bundle) as new:
        _write(new / "ca.crt", (folder / "ca.crt").read_bytes(), _PUBLIC)
        coordinator = folder / "server" / COORDINATOR_PUB
        _write(new / COORDINATOR_PUB, coordinator.read_bytes(), _PUBLIC)
        _write(new / "site.key", private, _SECRET)
        _write(new / "site.pub", public + f" {bundle.name}\n".encode(), _PUBLIC)
        _write(new / "site.toml", settings.encode(), _PUBLIC)


def check_validity(path: Path) -> None:
    """Check that a certificate is valid now.

    Raises
    ------
    SettingsError
        If it is not yet or no longer, or cannot be read.
    """
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read as a certificate: {error}") from error
    if certificate.not_valid_after_utc < datetime.now(UTC):
        raise SettingsError(
            f"{path} expired on {certificate.not_valid_after_utc:%Y-%m-%d}: make a new one with "
            "nnUNetv2_federated_provision --renew."
        )
    if certificate.not_valid_before_utc > datetime.now(UTC):
        raise SettingsError(
            f"{path} is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC: set this "
            "machine's clock."
        )


def _check_server(path: Path, server: Address) -> None:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if _general_name(server.host) not in list(names):
        raise SettingsError(
            f"{path} is not for {server.host}: name the server it was made for, or make a new one "
            "with --renew."
        )
    check_validity(path)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_MAY_DIFFER)
        .not_valid_after(now + timedelta(days=days))
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    """Replace a file at once, never readable by others if it is secret."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)


@contextmanager
def _whole_folder(path: Path) -> Iterator[Path]:
    """Make a folder, readable by its owner, that appears with all its files or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=path.parent))
    try:
        yield temporary
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
