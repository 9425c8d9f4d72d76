"""Where nnU-Net keeps the postprocessing and the means of what it chooses from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunetv2.utilities.file_path_utilities import folds_tuple_to_string, get_ensemble_name

POSTPROCESSING = "postprocessing.pkl"


def chosen_folder(folders: Sequence[Path], folds: Sequence[int | str]) -> Path:
    """Return the folder of one configuration, or of an ensemble of two.

    Parameters
    ----------
    folders
        Result folders of the configurations.
    folds
        Folds that were trained.
    """
    if len(folders) > 1:
        name = get_ensemble_name(*map(str, folders), tuple(folds))
        return folders[0].parent / "ensembles" / str(name)
    return folders[0] / f"crossval_results_folds_{folds_tuple_to_string(list(folds))}"
