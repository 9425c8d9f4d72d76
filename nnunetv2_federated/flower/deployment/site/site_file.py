"""``site.toml``: the settings of a hospital's site."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.names import check_name
from nnunetv2_federated.flower.deployment.address import Address
from nnunetv2_federated.flower.deployment.keyfiles import read_secret
from nnunetv2_federated.flower.deployment.site.limits import Limits

DEFAULT_MAX_MESSAGE_MB = 2048.0


@dataclass(frozen=True)
class SiteSettingsFile:
    """Content of ``site.toml``; relative paths in it are relative to the file."""

    name: str
    server: Address
    ca: Path
    key: Path
    coordinator: Path
    work: Path
    """Private folder of the site: the message being answered, approvals, ledger and logs."""
    limits: Limits = field(default_factory=Limits)
    max_message_mb: float = DEFAULT_MAX_MESSAGE_MB
    allowed_modules: tuple[str, ...] = ()
    """Python modules of the hospital's own, whose trainers and networks plans may name."""

    def load_key(self) -> ec.EllipticCurvePrivateKey:
        """Read the site's private key.

        Raises
        ------
        SettingsError
            If the file holds none, or others can read or replace it.
        """
        try:
            key = load_ssh_private_key(read_secret(self.key), None)
        except (ValueError, TypeError) as error:
            raise SettingsError(f"key {self.key} cannot be read: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise SettingsError(
                f"key {self.key} is not the key nnUNetv2_federated_site --new-key made."
            )
        return key

    def load_authority(self) -> bytes:
        """Read the authority's certificate.

        Raises
        ------
        SettingsError
            If it cannot be read.
        """
        try:
            return self.ca.read_bytes()
        except OSError as error:
            raise SettingsError(f"ca {self.ca} cannot be read: {error}") from error


_LARGEST_MESSAGE_MB = 2**20
_PATHS = ("ca", "key", "coordinator", "work")
_TEXTS = ("name", "server", *_PATHS)


def read_site_file(path: Path) -> SiteSettingsFile:
    """Read ``site.toml``.

    Raises
    ------
    SettingsError
        If it cannot be read, a key is unknown or missing, or a value not allowed.
    """
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"--site {path} cannot be read: {error}") from error
    content.setdefault("work", "work")
    limits = {field.name for field in dataclasses.fields(Limits)}
    own = {field.name for field in dataclasses.fields(SiteSettingsFile)} - {"limits"}
    _check_keys(path, content, own | limits)
    check_name(f"--site {path}: name", content["name"])
    chosen = {key: value for key, value in content.items() if key in own}
    chosen |= {key: path.parent / content[key] for key in _PATHS}
    chosen["server"] = Address.of(content["server"])
    chosen["allowed_modules"] = _modules(path, content.get("allowed_modules", []))
    chosen["max_message_mb"] = _message_size(path, content)
    return SiteSettingsFile(
        **chosen, limits=Limits(**{k: v for k, v in content.items() if k in limits})
    )


def _check_keys(path: Path, content: Mapping[str, Any], known: Collection[str]) -> None:
    for key in content:
        if key not in known:
            raise SettingsError(
                f"--site {path}: {key} is unknown; known are {', '.join(sorted(known))}."
            )
    for key in _TEXTS:
        if not isinstance(content.get(key), str):
            raise SettingsError(f"--site {path}: {key} is missing, or not a text.")


def _message_size(path: Path, content: Mapping[str, Any]) -> float:
    size = content.get("max_message_mb", DEFAULT_MAX_MESSAGE_MB)
    if type(size) not in (int, float) or not 0 < size <= _LARGEST_MESSAGE_MB:
        raise SettingsError(
            f"--site {path}: max_message_mb {size!r} must be a number above 0, at most "
            f"{_LARGEST_MESSAGE_MB}."
        )
    return float(size)


def _modules(path: Path, names: object) -> tuple[str, ...]:
    """Return the hospital's own modules, as Python spells them."""
    spelled = isinstance(names, list) and all(
        isinstance(name, str) and all(part.isidentifier() for part in name.split("."))
        for name in names
    )
    if not spelled or not isinstance(names, list):
        raise SettingsError(
            f"--site {path}: allowed_modules {names!r} must be a list of Python modules, such as "
            '["our_hospital.trainers"].'
        )
    return tuple(names)
