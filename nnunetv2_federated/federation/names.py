"""Names of datasets, plans, configurations, trainers and sites, and numbers of folds.

Such a name becomes part of a path, so it is checked where it enters, before any file is opened.
"""

from __future__ import annotations

import re

from nnunetv2_federated.federation.errors import SettingsError

_LONGEST = 128
_MOST_FOLDS = 1000
_PLAIN = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_+-]|\.(?=[A-Za-z0-9_+-]))*")
_DATASET = re.compile(r"Dataset\d{3}_.+")
_RESERVED = {"con", "prn", "aux", "nul"}

ALLOWED = "letters, digits, _, -, + and single dots between them, at most 128"
"""The characters of a name, in words for messages."""


def is_plain_name(value: object) -> bool:
    """Whether a value can be part of a path without leading anywhere else."""
    return (
        isinstance(value, str)
        and len(value) <= _LONGEST
        and _PLAIN.fullmatch(value) is not None
        and value.casefold() not in _RESERVED
    )


def check_name(what: str, value: object) -> str:
    """Return a name after making sure that it is plain.

    Parameters
    ----------
    what
        What the name is of, for the message.
    value
        Name to check.

    Raises
    ------
    SettingsError
        If it is no plain name.
    """
    if not isinstance(value, str) or not is_plain_name(value):
        raise SettingsError(f"{what} {_shown(value)} is not a name: use {ALLOWED}.")
    return value


def check_dataset_name(value: object) -> str:
    """Return the name of an nnU-Net dataset, ``Dataset501_Name``, after checking it.

    Raises
    ------
    SettingsError
        If it is no name of a dataset.
    """
    name = check_name("dataset", value)
    if not _DATASET.fullmatch(name):
        raise SettingsError(f"dataset {name}: nnU-Net needs a name such as Dataset501_Name.")
    return name


def check_fold(value: object) -> int | str:
    """Return the number of a fold, or ``all``, after checking it.

    Raises
    ------
    SettingsError
        If it is neither.
    """
    if value == "all":
        return "all"
    if type(value) is int and 0 <= value < _MOST_FOLDS:
        return value
    raise SettingsError(f"fold {_shown(value)}: give a number such as 0, or all.")


def read_fold(value: object) -> int | str:
    """Return a fold as :func:`check_fold` does; a number may be a text.

    Raises
    ------
    SettingsError
        If it is neither a number of a fold nor ``all``.
    """
    number = isinstance(value, str) and value.isdecimal() and len(value) < 9
    return check_fold(int(str(value)) if number else value)


def _shown(value: object) -> str:
    """Return a value for a message, with control characters escaped and cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
