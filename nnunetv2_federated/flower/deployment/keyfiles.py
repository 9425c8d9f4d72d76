"""Files that hold keys: secret ones that only their owner can read, public ones from strangers.

A secret key that others can read or replace is refused, as OpenSSH refuses it. A public key is read
as untrusted input.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.names import check_name
from nnunetv2_federated.secure.public_keys import parse_public_key

_LARGEST = 65536
"""Bytes of a secret key file; one takes less than a thousand."""
_LARGEST_PUBLIC = 4096
_OTHERS_MAY = 0o077
_OTHERS_MAY_WRITE = 0o022

SITE_KEY = "site.key"
_LONGEST_NAME = 64


def read_secret(path: Path) -> bytes:
    """Read a secret key that nobody but its owner can read or replace.

    Parameters
    ----------
    path
        Path of the file. Of a link, the file it leads to counts, and both folders.

    Raises
    ------
    SettingsError
        If it cannot be read, belongs to another user, is readable or writable by others, or lies in
        a folder that another user owns or may write to. The message has the command that fixes it.
    """
    for folder in dict.fromkeys((path.parent.resolve(), path.resolve().parent)):
        check_key_folder(folder)
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise SettingsError(f"the key {path} cannot be read: {error.strerror}.") from error
    try:
        status = os.fstat(descriptor)  # of what was opened, not of what is there by now
        if not stat.S_ISREG(status.st_mode):
            raise SettingsError(f"the key {path} is not a file.")
        _check_owner(f"the key {path}", path, status)
        _check_mode(f"the key {path}", path, status, "600")
        content = os.read(descriptor, _LARGEST + 1)
    finally:
        os.close(descriptor)
    if len(content) > _LARGEST:
        raise SettingsError(f"the key {path} is larger than {_LARGEST} bytes: it is no key.")
    return content


def check_private_folder(path: Path, what: str) -> None:
    """Check that nobody but this user can look into a folder; make it if it is not there.

    Parameters
    ----------
    path
        The folder.
    what
        First words of the message, such as the flag.

    Raises
    ------
    SettingsError
        If it cannot be made, is no folder, is open to others, or belongs to another user, itself or
        what lies in it. The message has the command that fixes it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        link, status = path.lstat(), path.stat()
        content = {file: file.lstat() for file in path.iterdir()}
    except OSError as error:
        raise SettingsError(f"{what} {path} cannot be used: {error.strerror}.") from error
    for each in (link, status):
        _check_owner(f"{what} {path}", path, each)
    _check_mode(f"{what} {path}", path, status, "700")
    for file, of_file in content.items():  # somebody may have been there before it was closed
        _check_owner(f"{what}: {file}", file, of_file)


def check_key_folder(folder: Path) -> None:
    """Check that nobody else can put another key in the place of one that lies there.

    Raises
    ------
    SettingsError
        If the folder is not there, belongs to another user than this and root, or others may write
        to it. The message has the command that fixes it.
    """
    if not _has_owners():
        return
    try:
        status = folder.stat()
    except OSError as error:
        raise SettingsError(f"the folder {folder} cannot be read: {error.strerror}.") from error
    if status.st_uid != 0:
        _check_owner(f"the folder {folder}, for keys,", folder, status)
    if status.st_mode & _OTHERS_MAY_WRITE:
        raise SettingsError(
            f"the folder {folder}, for keys, may be written by others (mode "
            f"{stat.S_IMODE(status.st_mode):o}): chmod go-w {folder}"
        )


def _check_owner(what: str, path: Path, status: os.stat_result) -> None:
    if _has_owners() and status.st_uid != os.geteuid():
        raise SettingsError(
            f"{what} belongs to user {status.st_uid}, not to {os.geteuid()}, who runs this: chown "
            f"{os.geteuid()} {path}, or take another."
        )


def _check_mode(what: str, path: Path, status: os.stat_result, wanted: str) -> None:
    if _has_owners() and status.st_mode & _OTHERS_MAY:
        raise SettingsError(
            f"{what} is open to others (mode {stat.S_IMODE(status.st_mode):o}): chmod {wanted} "
            f"{path}, and take a new one if somebody may have been there."
        )


def _has_owners() -> bool:
    """Whether files have an owner and a mode: on Windows they have not."""
    return os.name == "posix"


def read_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read a site's public key, which anybody may have sent.

    Only the key is taken: what is written behind it is ignored.

    Raises
    ------
    SettingsError
        If it is not one line with an ECDSA key in OpenSSH's format.
    """
    try:
        if not path.is_file():
            raise SettingsError(f"the public key {path} is not there, or not a file.")
        with path.open("rb") as file:
            content = file.read(_LARGEST_PUBLIC + 1)
    except OSError as error:
        raise SettingsError(f"the public key {path} cannot be read: {error.strerror}.") from error
    if b"PRIVATE KEY" in content:
        raise SettingsError(
            f"{path} is a private key: it should never have left the site. Let the site make a new "
            "one with nnUNetv2_federated_site --new-key, and take what ends in .pub."
        )
    lines = content.splitlines()
    whole = lines[0] if len(lines) == 1 and len(content) <= _LARGEST_PUBLIC else b""
    try:
        return parse_public_key(whole)
    except ValueError as error:
        raise SettingsError(
            f"{path} is not the public key that nnUNetv2_federated_site --new-key makes: one line, "
            "ecdsa-sha2-nistp384 and the key."
        ) from error


def authority_fingerprint(path: Path) -> str:
    """Return what ``openssl x509 -fingerprint -sha256`` shows of the authority's certificate.

    Raises
    ------
    SettingsError
        If the file is no certificate.
    """
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read as a certificate: {error}") from error
    der = certificate.public_bytes(Encoding.DER)
    return hashlib.sha256(der).digest().hex(":").upper()


def check_site_name(flag: str, name: str) -> str:
    """Return the name of a site.

    Raises
    ------
    SettingsError
        If it is none, or too long.
    """
    if len(check_name(flag, name)) > _LONGEST_NAME:
        raise SettingsError(f"{flag} {name}: a site's name has at most {_LONGEST_NAME} letters.")
    return name


def private_key_text(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key in OpenSSH's format."""
    return key.private_bytes(
        Encoding.PEM,
        PrivateFormat.OpenSSH,
        NoEncryption(),
    )
