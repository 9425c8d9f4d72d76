"""A release on disk: one folder with all its files, or a zip of it, read as untrusted input.

Two zips of the same files are equal, bit for bit: members are in order and have no time.
"""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.names import check_dataset_name
from nnunetv2_federated.federation.text import clean

_NO_TIME = (1980, 1, 1, 0, 0, 0)
"""Earliest time that a zip can have."""
_PACKED = (".pth", ".pt")
"""Files that are zips themselves: weights hardly become smaller."""
_MODE = (stat.S_IFREG | 0o644) << 16
_UNIX = 3
_BLOCK = 2**20
_MOST_MEMBERS = 10_000
_MOST_TIMES = 20
"""Largest size of all files as a multiple of the zip's: weights hardly become smaller."""
_LARGEST_TEXT = 2**24
"""Bytes of the largest file that is read into memory."""


class ReleaseFiles(Protocol):
    """The files of a release."""

    top: str
    """The one folder that has them all: the name of the dataset."""

    def names(self) -> list[str]:
        """Return the paths of the files below :attr:`top`, in order."""
        ...

    def open(self, name: str) -> IO[bytes]:
        """Open a file."""
        ...


def read_text(files: ReleaseFiles, name: str) -> bytes:
    """Read a small file of a release.

    Raises
    ------
    SettingsError
        If it is larger than any of this kind is.
    """
    with files.open(name) as file:
        content = file.read(_LARGEST_TEXT + 1)
    if len(content) > _LARGEST_TEXT:
        raise SettingsError(f"{name} is larger than {_LARGEST_TEXT} bytes: it is of no release.")
    return content


def write_zip(folder: Path, path: Path) -> None:
    """Write a folder, with its name, as a zip that only depends on what is in it.

    Parameters
    ----------
    folder
        Folder to write.
    path
        File to create.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            info = zipfile.ZipInfo(file.relative_to(folder.parent).as_posix(), _NO_TIME)
            info.compress_type = (
                zipfile.ZIP_STORED if file.suffix in _PACKED else zipfile.ZIP_DEFLATED
            )
            info.create_system, info.external_attr = _UNIX, _MODE
            info.file_size = file.stat().st_size
            with file.open("rb") as source, archive.open(info, "w") as member:
                while block := source.read(_BLOCK):
                    member.write(block)


@contextmanager
def open_release(path: Path) -> Iterator[ReleaseFiles]:
    """Open a release, and check that each of its files is a plain one below its only folder.

    Parameters
    ----------
    path
        Zip, or folder that holds the folder of the dataset.

    Raises
    ------
    SettingsError
        If it cannot be read, or is no release.
    """
    if path.is_dir():
        yield _Folder(path)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            yield _Zip(path, archive)
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
        raise SettingsError(
            f"{path} is damaged, or no zip ({clean(error, 100)}): fetch it again."
        ) from error


class _Zip:
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        members = archive.infolist()
        if len(members) > _MOST_MEMBERS:
            raise SettingsError(f"{path} has {len(members)} files: it is no release.")
        if sum(member.file_size for member in members) > _MOST_TIMES * path.stat().st_size:
            raise SettingsError(
                f"{path} says that its files are more than {_MOST_TIMES} times as large as the "
                "zip: it is no release."
            )
        for member in members:
            if member.is_dir() or stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
                raise _refused(path, member.filename, "is no plain file")
            if member.flag_bits & 1:
                raise _refused(path, member.filename, "is encrypted")
        self.top = _only_folder(path, [member.filename for member in members])

    def names(self) -> list[str]:
        return sorted(name.partition("/")[2] for name in self._archive.namelist())

    def open(self, name: str) -> IO[bytes]:
        return self._archive.open(f"{self.top}/{name}")


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path
        found = [file for file in sorted(path.rglob("*")) if file.is_symlink() or not file.is_dir()]
        for file in found:
            if file.is_symlink() or not file.is_file():
                raise _refused(path, file.name, "is no plain file")
        self._files = [file.relative_to(path).as_posix() for file in found]
        self.top = _only_folder(path, self._files)

    def names(self) -> list[str]:
        return sorted(name.partition("/")[2] for name in self._files)

    def open(self, name: str) -> IO[bytes]:
        return (self._path / self.top / name).open("rb")


def _only_folder(path: Path, names: list[str]) -> str:
    """Return the folder that holds all files; refuse names that lead elsewhere, or double ones."""
    for name in names:
        if not _stays_below(name):
            raise _refused(path, name, "has a name that leads elsewhere")
    if len({name.casefold() for name in names}) < len(names):
        raise SettingsError(f"{path}: two of its files have the same name: it is no release.")
    tops = {name.partition("/")[0] for name in names}
    if len(tops) != 1 or any("/" not in name for name in names):
        raise SettingsError(
            f"{path}: its files are not in one folder with the name of a dataset: it is no release "
            "of nnUNetv2_federated_release."
        )
    return check_dataset_name(tops.pop())


def _stays_below(name: str) -> bool:
    """Whether the name of a file is a plain path below the folder it is put in."""
    parts = PurePosixPath(name).parts
    written_alike = name == "/".join(parts) and clean(name) == name
    return written_alike and ".." not in parts and not any(sign in name for sign in "\\:")


def _refused(path: Path, name: str, what: str) -> SettingsError:
    return SettingsError(f"{path}: {clean(name, 100)} {what}: do not install it.")
