"""Folder of preprocessed cases: nnU-Net takes every file in it for a case."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.text import few

_BLOSC2, _NUMPY, _PROPERTIES = ".b2nd", ".npz", ".pkl"
_OF_NNUNET = (_BLOSC2, _NUMPY, ".npy", _PROPERTIES)
_SEGMENTATION = f"_seg{_BLOSC2}"


def check_files(folder: Path) -> bool:
    """Make sure that a folder holds whole cases of one version of nnU-Net, and nothing else.

    Subfolders are not looked at: nnU-Net ignores them.

    Parameters
    ----------
    folder
        Folder of a configuration in ``nnUNet_preprocessed``.

    Returns
    -------
    bool
        Whether there is any case.

    Raises
    ------
    SettingsError
        If a file is of something else, of another version, or lacks the file that belongs to it.
    """
    files = {path.name for path in folder.iterdir() if path.is_file()}
    _refuse_stray(folder, files)
    newer, older = _with_ending(files, _BLOSC2), _with_ending(files, _NUMPY)
    if newer and older:
        fewer = min(newer, older, key=len)
        raise SettingsError(
            f"{folder} holds files of two versions of nnU-Net, {_BLOSC2} and {_NUMPY}: remove "
            f"{few(sorted(fewer))}, or delete the folder and preprocess again."
        )
    images = newer - _with_ending(files, _SEGMENTATION) or older
    endings = (_PROPERTIES, _SEGMENTATION) if newer else (_PROPERTIES,)
    needed = {Path(image).stem + ending for image in images for ending in endings}
    _refuse_lacking(folder, needed - files)
    return bool(images)


def _with_ending(files: Set[str], ending: str) -> set[str]:
    return {file for file in files if file.endswith(ending)}


def _refuse_stray(folder: Path, files: Set[str]) -> None:
    stray = [f for f in files if f.startswith(".") or Path(f).suffix not in _OF_NNUNET]
    if stray:
        raise SettingsError(
            f"{folder} holds {few(sorted(stray))} beside nnU-Net's own files: remove what nnU-Net "
            "did not write, it takes every file for a case."
        )


def _refuse_lacking(folder: Path, lacking: Set[str]) -> None:
    if lacking:
        raise SettingsError(
            f"{folder} lacks {few(sorted(lacking))}: preprocessing was interrupted, or files were "
            "removed; preprocess again (nnUNetv2_preprocess)."
        )
