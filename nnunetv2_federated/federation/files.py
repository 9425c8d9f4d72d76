"""Files that survive a kill and a power cut: replaced in one step, after they are on the disk.

A state file is JSON with a format number. A file that is empty, damaged or of another format is
refused, with what to do about it; it is never taken for an absent one.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from nnunetv2_federated.federation.errors import CheckpointError, SettingsError

_PRIVATE_FILE, _PRIVATE_FOLDER = 0o600, 0o700


def write_atomically(path: Path, text: str, *, private: bool = False) -> None:
    """Replace a file in one step: no reader, kill or power cut ever meets half of it."""
    with replacing(path, private=private) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_private(path: Path, content: bytes) -> None:
    """Replace a file that only this user can read, as :func:`write_atomically` does."""
    with replacing(path, private=True) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def replacing(path: Path, suffix: str = ".tmp", *, private: bool = False) -> Iterator[Path]:
    """Yield a temporary file that replaces ``path`` at the end.

    If the block or the replacement fails, the temporary file is deleted and ``path`` is unchanged.

    Parameters
    ----------
    path
        File to replace.
    suffix
        Suffix of the temporary file. Processes that write the same file at a time need different
        ones.
    private
        Whether only this user may read the file.
    """
    temporary = path.with_name(path.name + suffix)
    try:
        if private:
            temporary.unlink(missing_ok=True)
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE_FILE))
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a write does not say which file it was
        raise


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk, as far as the operating system can tell."""
    if path.is_dir() and sys.platform == "win32":  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def private_folder(path: Path) -> Path:
    """Create a folder that only this user can read, or make an existing one private."""
    path.mkdir(parents=True, exist_ok=True, mode=_PRIVATE_FOLDER)
    if path.stat().st_mode & 0o077:
        path.chmod(_PRIVATE_FOLDER)
    return path


def write_state(path: Path, content: Mapping[str, Any], version: int) -> None:
    """Replace a private state file; ``version`` is the number of its format."""
    private_folder(path.parent)
    text = json.dumps({"format": version, **content}, indent=1)
    write_atomically(path, text, private=True)


def read_state(path: Path, version: int, remedy: str) -> dict[str, Any] | None:
    """Read a state file, without its format number; return ``None`` if there is no file.

    Parameters
    ----------
    path
        File that :func:`write_state` wrote.
    version
        Number of the format that is understood here.
    remedy
        End of the message for a file that cannot be read: what to do about it.

    Raises
    ------
    CheckpointError
        If the file is empty, damaged or of another format.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): {remedy}") from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        what = "is damaged" if text.strip() else "is empty"
        raise CheckpointError(f"{path} {what}: {remedy}") from error
    found = content.pop("format", None) if isinstance(content, dict) else None
    if type(found) is not int:
        raise CheckpointError(f"{path} is not a state file of this program: {remedy}")
    if found != version:
        raise CheckpointError(f"{path} has {format_problem(found, version, 'this installation')}")
    return dict(content)


def format_problem(found: int, version: int, ours: str, theirs: str = "the file") -> str:
    """Say which of two sides with different formats to upgrade.

    Parameters
    ----------
    found
        Number of the format that came.
    version
        Number of the format that is understood here.
    ours, theirs
        Names of the two sides, for the message.
    """
    if found > version:
        return f"format {found}, {ours} knows {version}: upgrade nnunetv2-federated of {ours}."
    return (
        f"format {found}, {ours} knows {version}: {theirs} is of an older nnunetv2-federated; "
        f"upgrade what wrote it, or go back to the version that did."
    )


@contextlib.contextmanager
def only_one(
    lock: Path, refusal: str, *, remove: bool = False, inherited: bool = False
) -> Iterator[None]:
    """Hold a lock file; the lock ends with the process, however that ends.

    Processes forked within hold it as well.

    Parameters
    ----------
    lock
        Lock file; created if missing.
    refusal
        Message if another process holds the lock.
    remove
        Whether the file is deleted at the end; a process that is killed leaves it.
    inherited
        Whether programs that are started within with ``close_fds=False`` hold it as well.

    Raises
    ------
    SettingsError
        With ``refusal``, if another process holds the lock.
    """
    if sys.platform == "win32":
        yield
        return
    lock.parent.mkdir(parents=True, exist_ok=True)
    with _locked(lock, refusal) as file:
        os.set_inheritable(file.fileno(), inherited)
        try:
            yield
        finally:
            if remove:
                lock.unlink(missing_ok=True)


def _locked(lock: Path, refusal: str) -> IO[str]:
    """Open and lock a file.

    The process that held it before may delete it between the two steps. Then others would lock a
    new file of that name, so the file must still be there once it is locked.
    """
    import fcntl  # noqa: PLC0415  # not on Windows

    while True:
        file = lock.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise SettingsError(f"{lock} is held: {refusal}") from error
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                return file
        file.close()


@contextlib.contextmanager
def wait_for_turn(lock: Path) -> Iterator[None]:
    """Hold a lock file during a short change; other processes wait for their turn."""
    if sys.platform == "win32":
        yield
        return
    import fcntl  # noqa: PLC0415  # not on Windows

    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
