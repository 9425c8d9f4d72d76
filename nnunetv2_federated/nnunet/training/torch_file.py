"""Files of torch that survive a kill, and state files that are read without running code."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch

from nnunetv2_federated.federation.errors import CheckpointError
from nnunetv2_federated.federation.files import format_problem, replacing

_FORMAT = 3
"""Number of the format of the states that a server and a site keep between rounds."""


class _RememberingFile:
    """File for torch that remembers the disk's error: torch raises one of its own in its place."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        """Write, and remember the error if the disk refuses."""
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Flush the file."""
        self._file.flush()


def write_torch(path: Path, content: dict[str, Any]) -> None:
    """Replace a file of torch so that a kill at any moment leaves the old one or the new one.

    Raises
    ------
    OSError
        If the disk refuses the write; no part of the new file is left.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        remembering = _RememberingFile(file)
        try:
            torch.save(content, cast(IO[bytes], remembering))
        except RuntimeError:
            if remembering.error is not None:
                raise remembering.error from None
            raise


def plain(value: Any) -> Any:  # noqa: ANN401  # nnU-Net keeps whatever was logged
    """Return NumPy's scalars as Python numbers, so that reading them needs no pickle."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a state with its format number for :func:`load`, as :func:`write_torch` does."""
    write_torch(path, {"format": _FORMAT, **state})


def load(path: Path) -> dict[str, Any]:
    """Read a state; only tensors and plain values are accepted, never code.

    Raises
    ------
    CheckpointError
        If the file is damaged, absent or of another format.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        version = int(state.pop("format", 0))
    except Exception as error:  # torch.load raises a dozen unrelated types
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}): restore it from a backup, or start "
            "anew without --c."
        ) from error
    if version != _FORMAT:
        raise CheckpointError(
            f"{path} has {format_problem(version, _FORMAT, 'this installation')} Or start anew "
            "without --c."
        )
    return state
