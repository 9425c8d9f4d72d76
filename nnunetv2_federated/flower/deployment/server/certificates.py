"""The certificates of a federation: its own authority's, and the server's that it signs."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nnunetv2_federated.federation.errors import SettingsError

_CLOCKS_MAY_DIFFER = timedelta(hours=1)
_CA_NAME = "nnunetv2-federated CA"


def authority_certificate(key: ec.EllipticCurvePrivateKey, days: int) -> x509.Certificate:
    """Return the certificate of an authority that signs certificates and nothing else.

    Parameters
    ----------
    key
        The authority's.
    days
        How long it is valid.
    """
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _CA_NAME)])
    return (
        _certificate(name, name, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )


def server_certificate(
    host: str,
    key: ec.EllipticCurvePublicKey,
    authority: x509.Certificate,
    signer: ec.EllipticCurvePrivateKey,
    days: int,
) -> x509.Certificate:
    """Return the certificate of a server.

    Parameters
    ----------
    host
        Name or address under which sites find it.
    key
        The server's.
    authority, signer
        The authority's certificate and key.
    days
        How long it is valid.
    """
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
    names = dict.fromkeys((host, "localhost", "127.0.0.1"))  # the server calls itself too
    return (
        _certificate(name, authority.subject, key, days)
        .add_extension(x509.SubjectAlternativeName([_general_name(n) for n in names]), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA384())
    )


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


def check_server(path: Path, host: str) -> None:
    """Check that a certificate is that of a server, and valid now.

    Parameters
    ----------
    path
        File of the certificate.
    host
        Name or address of the server.

    Raises
    ------
    SettingsError
        If it is not.
    """
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if _general_name(host) not in list(names):
        raise SettingsError(
            f"{path} is not for {host}: name the server it was made for, or make a new one "
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
