"""What a disk refuses, told as that: libraries make other errors of it, or forget the file."""

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
"""Bytes; what is left on a disk is less where a file did not fit."""


@contextlib.contextmanager
def naming_the_disk(folder: Path) -> Iterator[None]:
    """Raise what the disk says in place of what a library, or a worker of it, made of that.

    Parameters
    ----------
    folder
        Where is written within.

    Raises
    ------
    OSError
        If something fails within and the disk is full or may not be written; with a file or folder.
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
    """Try to write a little that leaves nothing behind."""
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
