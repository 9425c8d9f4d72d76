"""The folder of a configuration's preprocessed cases: nnU-Net takes every file for a case."""

from __future__ import annotations

from pathlib import Path

from nnunetv2_federated.federation.errors import SettingsError

_BLOSC2, _NUMPY, _PROPERTIES = ".b2nd", ".npz", ".pkl"
_OF_NNUNET = (_BLOSC2, _NUMPY, ".npy", _PROPERTIES)
_MOST_NAMES = 3


def check_files(folder: Path) -> bool:
    """Make sure that there is nothing but whole cases of one version of nnU-Net.

    Folders within are left alone, as nnU-Net does.

    Parameters
    ----------
    folder
        Of a configuration, in ``nnUNet_preprocessed``.

    Returns
    -------
    bool
        Whether there is any case.

    Raises
    ------
    SettingsError
        Naming files that are something else, or lack their other half.
    """
    files = {path.name for path in folder.iterdir() if path.is_file()}
    stray = sorted(f for f in files if f.startswith(".") or Path(f).suffix not in _OF_NNUNET)
    if stray:
        raise SettingsError(
            f"{folder} holds {_few(stray)} beside nnU-Net's own files: remove what nnU-Net did not "
            "write, it takes every file for a case."
        )
    newer, older = (
        {file for file in files if file.endswith(ending)} for ending in (_BLOSC2, _NUMPY)
    )
    if newer and older:
        fewer = min(newer, older, key=len)
        raise SettingsError(
            f"{folder} holds files of two versions of nnU-Net, {_BLOSC2} and {_NUMPY}: remove "
            f"{_few(sorted(fewer))}, or delete the folder and preprocess again."
        )
    needed = (_PROPERTIES, f"_seg{_BLOSC2}") if newer else (_PROPERTIES,)
    cases = [f.rpartition(".")[0] for f in newer | older if not f.endswith(f"_seg{_BLOSC2}")]
    lacking = sorted(f"{case}{end}" for case in cases for end in needed if case + end not in files)
    if lacking:
        raise SettingsError(
            f"{folder} lacks {_few(lacking)}: preprocessing was interrupted, or files were "
            "removed; preprocess again (nnUNetv2_preprocess)."
        )
    return bool(cases)


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
