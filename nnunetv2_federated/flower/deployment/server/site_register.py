"""The register of sites: whose key is let in, and whose never again.

``sites/NAME.pub`` lets a key in, ``revoked_keys`` keeps one out for ever, under whatever name. Both
are read anew whenever they matter, so that a site is left out while a run goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.files import replacing, sync
from nnunetv2_federated.federation.names import check_name
from nnunetv2_federated.flower.deployment.keyfiles import read_public_key
from nnunetv2_federated.secure.public_keys import fingerprint, parse_public_key, public_line

REVOKED_KEYS = "revoked_keys"


@dataclass(frozen=True)
class SiteRegister:
    """The sites' public keys at the coordinator.

    Parameters
    ----------
    folder
        ``server`` of what :func:`.credentials.provision` made.
    """

    folder: Path

    def keys(self) -> dict[str, ec.EllipticCurvePublicKey]:
        """Return the key of each site that may take part now, by name.

        Raises
        ------
        SettingsError
            If a file cannot be read, has no name for a site, or a key is there twice: whose it is
            would be a guess.
        """
        revoked = self._revoked()
        found: dict[str, ec.EllipticCurvePublicKey] = {}
        owners: dict[str, str] = {}
        for path in sorted((self.folder / "sites").glob("*.pub")):
            name = check_name(f"{path}: the site's name", path.stem)
            try:
                key = read_public_key(path)
            except SettingsError:
                if not path.exists():  # revoked just now
                    continue
                raise
            mark = fingerprint(key)
            if mark in revoked:
                continue
            if mark in owners:
                raise SettingsError(
                    f"{path} holds the key of {owners[mark]}: remove one of the two files."
                )
            found[name], owners[mark] = key, name
        return found

    def check(self, name: str, key: ec.EllipticCurvePublicKey) -> None:
        """Check that a key can be let in under a name.

        Raises
        ------
        SettingsError
            If the key was revoked or is another site's, or the name has another key.
        """
        mark = fingerprint(key)
        if self.is_revoked(key):
            raise SettingsError(
                f"{name}: the key {mark} was revoked and stays so: let the site make a new one "
                "with nnUNetv2_federated_site --new-key."
            )
        for other, known in self.keys().items():
            if fingerprint(known) == mark and other != name:
                raise SettingsError(f"{name}: the key {mark} is that of {other} already.")
            if other == name and fingerprint(known) != mark:
                raise SettingsError(
                    f"{name} has another key, {fingerprint(known)}: take that back first with "
                    f"--revoke {name}."
                )
        self.check_name(name)

    def check_name(self, name: str) -> None:
        """Check that no other site has this name but for the case of its letters.

        Raises
        ------
        SettingsError
            If one has: on some machines both would be the same file.
        """
        for other in self.keys():
            if other != name and other.casefold() == name.casefold():
                raise SettingsError(f"{name}: there is a site {other}; choose another name.")

    def add(self, name: str, key: ec.EllipticCurvePublicKey) -> None:
        """Let a key in that was checked."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replacing(path) as temporary:
            temporary.write_bytes(public_line(key, name))

    def is_revoked(self, key: ec.EllipticCurvePublicKey) -> bool:
        """Whether a key stays outside, whoever shows it."""
        return fingerprint(key) in self._revoked()

    def has(self, name: str) -> bool:
        """Whether a site of that name is let in."""
        return name in self.keys()

    def revoke(self, name: str) -> str:
        """Keep a site's key out for ever, and take its name off the list; return its fingerprint.

        Raises
        ------
        SettingsError
            If its key cannot be read.
        """
        path = self._path(name)
        key = read_public_key(path)
        mark = fingerprint(key)
        if mark not in self._revoked():
            file = self.folder / REVOKED_KEYS
            before = file.read_bytes() if file.is_file() else b""
            with replacing(file) as temporary:
                temporary.write_bytes(before + public_line(key, name))
        path.unlink()
        sync(path.parent)
        return mark

    def _path(self, name: str) -> Path:
        return self.folder / "sites" / f"{name}.pub"

    def _revoked(self) -> set[str]:
        """Fingerprints of what stays outside; a damaged list lets nobody in."""
        file = self.folder / REVOKED_KEYS
        if not file.exists():
            return set()
        try:
            lines = file.read_bytes().splitlines()
        except OSError as error:
            raise SettingsError(f"{file} cannot be read: {error.strerror}.") from error
        try:
            return {fingerprint(parse_public_key(line)) for line in lines if line.strip()}
        except ValueError as error:
            raise SettingsError(
                f"{file} is damaged, so nobody is let in: one public key a line, as "
                "nnUNetv2_federated_provision --revoke writes it."
            ) from error
