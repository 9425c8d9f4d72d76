"""A hospital's key is made at the hospital, and only its public half leaves."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.files import replacing
from nnunetv2_federated.flower.deployment.keyfiles import (
    SITE_KEY,
    authority_fingerprint,
    check_key_folder,
    check_site_name,
    private_key_text,
)
from nnunetv2_federated.flower.deployment.site.site_file import SiteSettingsFile
from nnunetv2_federated.secure.public_keys import fingerprint, public_line


@dataclass(frozen=True)
class NewKey:
    """A key pair that was made."""

    private: Path
    """File that stays where it is."""
    public: Path
    """File to be sent to the coordinator."""
    mark: str
    """Fingerprint of the key, to be compared with what the coordinator sees."""


def make_key(name: str, folder: Path) -> NewKey:
    """Make a site's key pair: ECDSA on P-384, in OpenSSH's format.

    Parameters
    ----------
    name
        Name of the site; the public half is ``NAME.pub``, which tells the coordinator the name.
    folder
        Folder of both files; created if missing, and then for this user only.

    Raises
    ------
    SettingsError
        If the name is none, the folder is open to others or cannot be written, or has a key: a key
        is never replaced.
    """
    check_site_name("--new-key", name)
    private, public = folder / SITE_KEY, folder / f"{name}.pub"
    key = ec.generate_private_key(ec.SECP384R1())
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        check_key_folder(folder)
        if os.path.lexists(private):
            raise SettingsError(
                f"{private} is there already, and a key is never replaced: give another --folder."
            )
        with replacing(public) as temporary:
            temporary.write_bytes(public_line(key.public_key(), name))
        with replacing(private, private=True) as temporary:
            temporary.write_bytes(private_key_text(key))
    except OSError as error:
        raise SettingsError(f"--folder {folder} cannot be written: {error}") from error
    return NewKey(private, public, fingerprint(key.public_key()))


def identity(settings: SiteSettingsFile) -> dict[str, str]:
    """Return what a site compares with the coordinator on the telephone, by what it is of.

    Raises
    ------
    SettingsError
        If a key or certificate cannot be used.
    """
    # imported here: it imports Flower, which making a key need not wait for
    from nnunetv2_federated.flower.deployment.signing import (  # noqa: PLC0415
        load_verifying_key,
    )

    return {
        "authority": authority_fingerprint(settings.ca),
        "coordinator's key": fingerprint(load_verifying_key(settings.coordinator)),
        f"key of {settings.name}": fingerprint(settings.load_key().public_key()),
    }
