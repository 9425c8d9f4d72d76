"""Who may join: a certificate authority, the server's certificate, and a key pair per site.

The certificate lets a site recognise the server, the key pair lets the server recognise the site,
and what the coordinator asks is signed with a key of its own. The sites' keys are what Flower 1.41
and 1.42 take: ECDSA on a NIST curve, in OpenSSH's format.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.files import only_one, replacing
from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.keyfiles import (
    SITE_KEY,
    authority_fingerprint,
    check_key_folder,
    check_site_name,
    private_key_text,
    read_public_key,
    read_secret,
)
from nnunetv2_federated.flower.deployment.server.certificates import (
    authority_certificate,
    check_server,
    server_certificate,
)
from nnunetv2_federated.flower.deployment.server.nginx import nginx_conf
from nnunetv2_federated.flower.deployment.server.site_register import SiteRegister
from nnunetv2_federated.flower.deployment.signing import load_verifying_key
from nnunetv2_federated.secure.public_keys import fingerprint, public_line

COORDINATOR_KEY, COORDINATOR_PUB = "coordinator.key", "coordinator.pub"
SERVER_KEY = "server.key"
DEFAULT_DAYS = 730
CA_DAYS = 3650
_SECRET, _PUBLIC, _FOLDER = 0o600, 0o644, 0o700
_LOCK = ".provision.lock"


SITE_TOML = """\
name = "{site}"
server = "{server}"
ca = "ca.crt"
key = "site.key"
coordinator = "coordinator.pub"
"""


def provision(
    folder: Path,
    server: Address,
    sites: Sequence[str] = (),
    *,
    public_keys: Sequence[Path] = (),
    days: int = DEFAULT_DAYS,
    renew: bool = False,
) -> list[Path]:
    """Make what is not there yet: authority, server certificate, and a bundle for each site.

    ``folder/ca.key`` signs certificates and is needed for nothing else. ``folder/server`` goes to
    the coordinator, ``folder/sites/NAME`` to that site. The bundle of a site that sent its public
    key holds nothing secret; that of one of ``sites`` holds its private key, made here, and nothing
    secret of anyone else. What exists is never replaced, except by ``renew``.

    Parameters
    ----------
    folder
        Output folder, created if missing.
    server
        Address of the server, for its certificate and the sites' bundles.
    sites
        Names of the sites whose key pair is made here: for a try on one machine.
    public_keys
        Files ``NAME.pub`` of the other sites, who made their keys themselves.
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
        If a name, number or public key is not allowed, the certificate there is for another server
        or has expired, or the authority's key is needed and not there.
    """
    register = SiteRegister(folder / "server")
    enrolled = _check(register, sites, public_keys, days)
    _check_bundles(folder, register, sites, enrolled)
    folder.mkdir(parents=True, exist_ok=True, mode=_FOLDER)
    check_key_folder(folder)
    with only_one(folder / _LOCK, "this command runs already; wait for its end."):
        made = _make_coordinators_part(folder, server, days, renew=renew)
        new = [site for site in sites if not register.has(site)]  # others may be handed over
        made += [_add_with_new_key(folder, register, site, server) for site in new]
        for site, key in enrolled.items():
            bundle = folder / "sites" / site
            if not bundle.is_dir():
                _make_bundle(bundle, server, folder)
                made.append(bundle)
            register.add(site, key)
    return made


def _make_coordinators_part(folder: Path, server: Address, days: int, *, renew: bool) -> list[Path]:
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
        check_server(folder / "server" / "server.crt", server.host)
    return made


def revoke(folder: Path, sites: Sequence[str]) -> dict[str, str]:
    """Keep these sites' keys out for ever; a server that runs leaves them out from now on.

    Parameters
    ----------
    folder
        Folder that :func:`provision` made, with ``server`` in it; or ``server`` itself.
    sites
        Names of the sites.

    Returns
    -------
    dict
        The fingerprint of each key, by the site's name.

    Raises
    ------
    SettingsError
        If one is unknown; then none is revoked.
    """
    server = folder / "server" if (folder / "server").is_dir() else folder
    register = SiteRegister(server)
    for site in sites:
        if site not in register.keys():  # noqa: SIM118  # a method, no mapping
            known = ", ".join(register.keys()) or "none"
            raise SettingsError(f"--revoke {site!r}: no such site in {server}; known are {known}.")
    with only_one(folder / _LOCK, "this command runs already; wait for its end."):
        return {site: register.revoke(site) for site in dict.fromkeys(sites)}


def fingerprints(folder: Path) -> dict[str, str]:
    """Return what coordinator and sites compare on the telephone, by what it is of.

    Parameters
    ----------
    folder
        That :func:`provision` made.

    Raises
    ------
    SettingsError
        If a key or certificate there cannot be read.
    """
    server = folder / "server"
    return {
        "authority": authority_fingerprint(folder / "ca.crt"),
        "coordinator's key": fingerprint(load_verifying_key(server / COORDINATOR_PUB)),
        **{f"key of {name}": fingerprint(key) for name, key in SiteRegister(server).keys().items()},
    }


def _check(
    register: SiteRegister, sites: Sequence[str], public_keys: Sequence[Path], days: int
) -> dict[str, ec.EllipticCurvePublicKey]:
    """Look at all that was given before anything is made; return the keys that were sent."""
    names = [check_site_name("--sites", site) for site in sites]
    names += [check_site_name("--public-key", path.stem) for path in public_keys]
    if len({name.casefold() for name in names}) < len(names):
        raise SettingsError("--sites and --public-key: a name is given twice.")
    if not 0 < days <= CA_DAYS:
        raise SettingsError(f"--days {days}: must be from 1 to {CA_DAYS}.")
    enrolled: dict[str, ec.EllipticCurvePublicKey] = {}
    marks: dict[str, str] = {}
    for path in public_keys:
        key = read_public_key(path)
        register.check(path.stem, key)
        other = marks.setdefault(fingerprint(key), path.stem)
        if other != path.stem:
            raise SettingsError(f"--public-key: {other} and {path.stem} sent the same key.")
        enrolled[path.stem] = key
    for site in sites:
        register.check_name(site)
    return enrolled


def _check_bundles(
    folder: Path, register: SiteRegister, sites: Sequence[str], enrolled: Collection[str]
) -> None:
    """Refuse to hand out a key again that lies here still but was revoked."""
    for site in enrolled:
        bundle = folder / "sites" / site
        if (bundle / SITE_KEY).exists():
            raise SettingsError(
                f"--public-key {site}: {bundle} holds a private key that was made here: remove "
                "that folder, the site has a key of its own."
            )
    for site in sites:
        bundle = folder / "sites" / site
        if register.has(site) or not bundle.is_dir():
            continue
        key = read_public_key(bundle / "site.pub")
        if register.is_revoked(key):
            raise SettingsError(
                f"--sites {site}: {bundle} holds the key {fingerprint(key)}, which was revoked and "
                "stays so: remove that folder for a new key."
            )
        register.check(site, key)


def _add_with_new_key(folder: Path, register: SiteRegister, site: str, server: Address) -> Path:
    bundle = folder / "sites" / site
    if not bundle.is_dir():
        _make_bundle(bundle, server, folder, ec.generate_private_key(ec.SECP384R1()))
    register.add(site, read_public_key(bundle / "site.pub"))
    return bundle


def _make_authority(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = authority_certificate(key, CA_DAYS)
    _write(folder / "ca.key", _pem(key), _SECRET)
    _write(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM), _PUBLIC)


def _make_server(folder: Path, server: Address, days: int) -> None:
    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    if not (folder / "ca.key").is_file():
        raise SettingsError(
            f"{folder / 'ca.key'} is not there: the server's certificate is signed with it. Bring "
            "it back for this command."
        )
    try:
        signer = serialization.load_pem_private_key(read_secret(folder / "ca.key"), None)
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{folder / 'ca.key'} cannot be read as a key: {error}") from error
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise SettingsError(f"{folder / 'ca.key'} is not the key this command made.")
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = server_certificate(server.host, key.public_key(), authority, signer, days)
    target = folder / "server"
    (target / "server.crt").unlink(missing_ok=True)  # last: it stands for all of them
    _write(target / "server.toml", f'server = "{server}"\n'.encode(), _PUBLIC)
    proxy = nginx_conf(server.port, str(server.behind_proxy))
    _write(target / "nginx.conf", proxy.encode(), _PUBLIC)
    _write(target / "ca.crt", (folder / "ca.crt").read_bytes(), _PUBLIC)
    _write(target / SERVER_KEY, _pem(key), _SECRET)
    _write(target / "server.crt", certificate.public_bytes(serialization.Encoding.PEM), _PUBLIC)


def _make_coordinator(target: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _write(target / COORDINATOR_PUB, public, _PUBLIC)
    _write(target / COORDINATOR_KEY, _pem(key), _SECRET)


def _make_bundle(
    bundle: Path,
    server: Address,
    folder: Path,
    key: ec.EllipticCurvePrivateKey | None = None,
) -> None:
    """Make what a site is handed, with its key pair if that is made here."""
    settings = SITE_TOML.format(site=bundle.name, server=server)
    with _whole_folder(bundle) as new:
        _write(new / "ca.crt", (folder / "ca.crt").read_bytes(), _PUBLIC)
        coordinator = folder / "server" / COORDINATOR_PUB
        _write(new / COORDINATOR_PUB, coordinator.read_bytes(), _PUBLIC)
        _write(new / "site.toml", settings.encode(), _PUBLIC)
        if key is not None:
            _write(new / SITE_KEY, private_key_text(key), _SECRET)
            _write(new / "site.pub", public_line(key.public_key(), bundle.name), _PUBLIC)


def _pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    """Replace a file at once, never readable by others if it is secret."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=_FOLDER)
    with replacing(path, private=mode == _SECRET) as temporary:
        temporary.write_bytes(content)
        temporary.chmod(mode)


@contextmanager
def _whole_folder(path: Path) -> Iterator[Path]:
    """Make a folder, readable by its owner, that appears with all its files or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=_FOLDER)
    temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=path.parent))
    try:
        yield temporary
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
