"""Check a release that somebody else made: each file, nothing besides, and whose it is."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_federated.federation.checksums import CHECKSUMS_FILE, hash_file, read_checksums
from nnunetv2_federated.federation.errors import FederationError, SettingsError
from nnunetv2_federated.federation.model_card import CARD_FILE, ModelCard, read_card
from nnunetv2_federated.federation.release_files import ReleaseFiles, open_release, read_text
from nnunetv2_federated.federation.text import clean

SIGNATURE_FILE = f"{CHECKSUMS_FILE}.sig"
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class VerifiedRelease:
    """A release whose files are what its checksums say."""

    card: ModelCard
    files: int
    """Number of files that were compared."""
    signed: bool
    """Whether it has a signature, checked or not."""
    signer: str | None
    """Fingerprint of the key whose signature was checked; ``None`` if no key was given."""


def verify_release(path: Path, key: Path | None = None) -> VerifiedRelease:
    """Check a release; nothing is unpacked or installed.

    Parameters
    ----------
    path
        Zip or folder that ``nnUNetv2_federated_release`` made.
    key
        The coordinator's public key, whose signature the release must have; ``None`` to compare
        files only, which shows damage but not who made the release.

    Raises
    ------
    SettingsError
        If a file was changed, is missing or was added, or the signature is missing or another's.
    """
    try:
        with open_release(path) as files:
            return _verify(files, key)
    except _DAMAGED as error:
        raise SettingsError(
            f"{path} is damaged ({clean(error, 100)}): fetch it again, and do not install it."
        ) from error
    except FederationError as error:
        text = str(error).rstrip(".")
        if text.startswith(str(path)) or (key is not None and text.startswith(str(key))):
            raise
        raise SettingsError(f"{path}: {text}: do not install it.") from error


def _verify(files: ReleaseFiles, key: Path | None) -> VerifiedRelease:
    names = set(files.names())
    for name in (CHECKSUMS_FILE, CARD_FILE):
        if name not in names:
            raise SettingsError(f"{name} is missing")
    sums = read_text(files, CHECKSUMS_FILE)
    signature = read_text(files, SIGNATURE_FILE) if SIGNATURE_FILE in names else None
    signer = None if key is None else _signer(sums, signature, key)
    try:
        hashes = read_checksums(sums.decode("utf-8"))
    except ValueError as error:
        raise SettingsError(f"{CHECKSUMS_FILE} is damaged ({clean(error)})") from error
    _compare(files, names - {CHECKSUMS_FILE, SIGNATURE_FILE}, hashes)
    card = read_card(read_text(files, CARD_FILE))
    if card.dataset != files.top:
        raise SettingsError(f"its card is of {card.dataset}, its folder of {files.top}")
    return VerifiedRelease(card, len(hashes), signature is not None, signer)


def _compare(files: ReleaseFiles, names: set[str], hashes: dict[str, str]) -> None:
    missing, added = hashes.keys() - names, names - hashes.keys()
    for what, different in (("is missing", missing), ("was added", added)):
        if different:
            raise SettingsError(f"{clean(min(different), 100)} {what}")
    for name in sorted(names):
        with files.open(name) as file:
            if hash_file(file) != hashes[name]:
                raise SettingsError(f"{name} was changed")


def _signer(sums: bytes, signature: bytes | None, key: Path) -> str:
    # imported here: it imports Flower, which who only compares files need not wait for
    from nnunetv2_federated.experiment.release_signature import check_signature  # noqa: PLC0415

    return check_signature(sums, signature, key)
