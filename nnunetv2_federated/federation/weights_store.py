"""Vectors of an evaluated model on disk, each under the hash of its values."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nnunetv2_federated.federation.aggregation import Vector, is_finite
from nnunetv2_federated.federation.errors import CheckpointError, SiteError
from nnunetv2_federated.federation.evaluated_model import hash_vector
from nnunetv2_federated.federation.files import private_folder, replacing


class WeightsStore:
    """Keeps vectors in a private folder.

    Parameters
    ----------
    folder
        Folder of the files; made with the first vector.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, vector: Vector) -> str:
        """Keep a vector, shape (parameters,); return its hash.

        Raises
        ------
        SiteError
            If it has a value that is not finite.
        """
        if not is_finite(vector):
            raise SiteError("the weights are not finite")
        sha256 = hash_vector(vector)
        path = self._path(sha256)
        if not path.is_file():
            private_folder(self.folder)
            with replacing(path, private=True) as temporary, temporary.open("wb") as file:
                np.save(file, vector.astype("<f4", copy=False), allow_pickle=False)
        return sha256

    def has(self, sha256: str) -> bool:
        """Whether a vector of this hash is kept."""
        return self._path(sha256).is_file()

    def get(self, sha256: str) -> Vector:
        """Return the vector of a hash, shape (parameters,).

        Raises
        ------
        CheckpointError
            If there is none, or it was changed on the disk.
        """
        path = self._path(sha256)
        try:
            vector: Vector = np.load(path, allow_pickle=False)
            fits = vector.ndim == 1 and hash_vector(vector) == sha256
        except (OSError, ValueError, EOFError) as error:
            raise CheckpointError(f"{path} cannot be read: have the model sent again") from error
        if not fits:
            raise CheckpointError(f"{path} was changed: delete it, and have the model sent again")
        return vector

    def clear(self) -> None:
        """Delete all vectors."""
        for path in self.folder.glob("*.npy"):
            path.unlink(missing_ok=True)

    def _path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.npy"
