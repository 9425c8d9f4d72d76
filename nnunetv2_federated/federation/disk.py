"""Errors of a full or write-protected disk, in place of what libraries make of them."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nnunetv2_federated.federation.errors import FederationError

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NOT_ALLOWED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_A_LITTLE = 2**20
"""Bytes that are written to find out whether a disk is full."""


@contextlib.contextmanager
def naming_the_disk(folder: Path) -> Iterator[None]:
    """Raise the disk's error in place of the one that a library or its worker made of it.

    Parameters
    ----------
    folder
        Folder that is written to within.

    Raises
    ------
    OSError
        If something fails within, and the disk is full or may not be written; it names a file or
        the folder.
    """
    try:
        yield
    except FederationError:
        raise
    except OSError as error:
        error.filename = error.filename or str(folder)
        raise
    except Exception as error:
        if (refused := _refusal(folder)) is not None:
            raise refused from error
        raise


def _refusal(folder: Path) -> OSError | None:
    """Return the error of the disk if a little cannot be written; nothing is left of it."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_A_LITTLE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno in NO_ROOM | NOT_ALLOWED:
            error.filename = str(folder)
            return error
    return None
