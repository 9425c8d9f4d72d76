"""Versions of installed packages, and whether another machine has the same."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from nnunetv2_federated.federation.text import clean

NO_PACKAGE = "no package"
"""In place of a version: a module that no package installed."""

_MOST = 100


def installed_version(name: str) -> str:
    """Return the version of a distribution, or ``no package`` if none of that name is installed."""
    try:
        return version(name)
    except (PackageNotFoundError, ValueError):  # the last: the name is empty
        return NO_PACKAGE


def compare_packages(theirs: Mapping[str, str]) -> list[str]:
    """Return a line for each package whose version here differs from the coordinator's.

    Parameters
    ----------
    theirs
        Versions at the coordinator, by the name of the package.
    """
    lines = []
    for name in sorted(theirs)[:_MOST]:
        here, there = installed_version(name), theirs[name]
        shown = clean(name, 80)
        if there == NO_PACKAGE:
            lines.append(
                f"{shown}: belongs to no package; compare its files with the coordinator's"
            )
        elif here != there:
            present = "not installed" if here == NO_PACKAGE else here
            lines.append(f"{shown}: {present} here, {clean(there, 80)} at the coordinator")
    if len(theirs) > _MOST:
        lines.append(f"{len(theirs) - _MOST} more packages were not compared")
    return lines
