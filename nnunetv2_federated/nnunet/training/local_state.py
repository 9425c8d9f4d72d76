"""A site's own state between rounds: random numbers, and everything that is not federated."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch

from nnunetv2_federated.federation.errors import CheckpointError
from nnunetv2_federated.federation.files import format_problem, replacing

_FORMAT = 2
"""Of what a server and a site keep between rounds."""
_STATE_FILE = re.compile(r"after_round_(-?\d+)\.pt")


def seed_everything(seed: int) -> None:
    """Seed every generator nnU-Net and its augmentation draw from."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # batchgenerators draws from the legacy generator
    torch.manual_seed(seed)


def capture_randomness() -> dict[str, Any]:
    """Take a snapshot of every generator, in types ``torch.load`` reads without pickle."""
    legacy: Any = np.random.get_state()  # noqa: NPY002
    name, keys, position, has_gauss, gauss = legacy
    version, state, gauss_next = random.getstate()
    return {
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "python": [version, list(state), gauss_next],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_randomness(snapshot: dict[str, Any]) -> None:
    """Put every generator back to where :func:`capture_randomness` found it."""
    name, keys, position, has_gauss, gauss = snapshot["numpy"]
    np.random.set_state(  # noqa: NPY002
        (name, keys.numpy().astype(np.uint32), position, has_gauss, gauss)
    )
    version, state, gauss_next = snapshot["python"]
    random.setstate((version, tuple(state), gauss_next))
    torch.set_rng_state(snapshot["torch"])
    if snapshot["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(snapshot["cuda"])


class _Disk:
    """A file for torch, which raises an error of its own in place of the disk's."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        """Write, and remember why that was not possible."""
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Flush."""
        self._file.flush()


def write_torch(path: Path, content: dict[str, Any]) -> None:
    """Replace a file of torch's so that a kill at any moment leaves the old one or the new one.

    Raises
    ------
    OSError
        If the disk refuses it; nothing of the attempt is left.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        disk = _Disk(file)
        try:
            torch.save(content, cast(IO[bytes], disk))
        except RuntimeError:
            if disk.error is not None:
                raise disk.error from None
            raise


def plain(value: Any) -> Any:  # noqa: ANN401  # nnU-Net keeps whatever was logged
    """Return NumPy's scalars as Python numbers, so that reading needs no pickle."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a state for :func:`load`, as :func:`write_torch` does."""
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
        found = int(state.pop("format", 0))
    except Exception as error:  # torch.load raises a dozen unrelated types
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}): restore it from a backup, or start "
            "anew without --c."
        ) from error
    if found != _FORMAT:
        raise CheckpointError(
            f"{path} has {format_problem(found, _FORMAT, 'this installation')} Or start anew "
            "without --c."
        )
    return state


def rounds_on_disk(folder: Path) -> list[int]:
    """List the rounds after which a site saved its state, ascending."""
    matches = (_STATE_FILE.fullmatch(path.name) for path in folder.glob("after_round_*.pt"))
    return sorted(int(match.group(1)) for match in matches if match)


def state_path(folder: Path, server_round: int) -> Path:
    """Where a site keeps its state as it was after a round."""
    return folder / f"after_round_{server_round}.pt"


def drop_superseded(folder: Path) -> None:
    """Keep the three newest states.

    The newest may belong to a round the server must repeat, and the one before to a round that a
    server restored from a backup asks for again.
    """
    for server_round in rounds_on_disk(folder)[:-3]:
        state_path(folder, server_round).unlink()
