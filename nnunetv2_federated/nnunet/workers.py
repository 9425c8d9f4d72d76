"""How many worker processes nnU-Net starts for export, metrics and resampling."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping

VARIABLE = "nnUNet_def_n_proc"
"""Environment variable from which ``nnunetv2.configuration`` takes the number when imported."""

NNUNET_DEFAULT = 8
"""nnU-Net's own number of workers, whatever the machine."""


def usable_cores() -> int:
    """Return how many cores this process may use; a batch system may give it a part of them."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def bound_workers(
    variables: MutableMapping[str, str] | None = None,
    modules: Mapping[str, object] | None = None,
    cores: int | None = None,
) -> None:
    """Let nnU-Net start at most as many workers as this process has cores, and at most its own 8.

    Every worker imports torch and holds several hundred megabytes. A number that the user has set
    stays. Where nnU-Net is imported already, by one of its own commands, nothing is changed.

    Parameters
    ----------
    variables
        Environment to change; this process's if ``None``.
    modules
        Imported modules; this process's if ``None``.
    cores
        Cores to use; those of :func:`usable_cores` if ``None``.
    """
    variables = os.environ if variables is None else variables
    modules = sys.modules if modules is None else modules
    if "nnunetv2.configuration" not in modules:
        number = min(NNUNET_DEFAULT, usable_cores() if cores is None else cores)
        variables.setdefault(VARIABLE, str(number))
