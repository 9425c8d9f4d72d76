"""A command line that becomes the record of its choices, with the settings file it names."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, get_origin

from nnunetv2_federated.cli.flags import flag_names
from nnunetv2_federated.cli.settings_file import Source, read_settings_file
from nnunetv2_federated.federation.choice import (
    ChoiceError,
    Choices,
    choice_of,
    hints_of,
    names_of,
    parts_of,
    spell_flag,
)
from nnunetv2_federated.federation.errors import SettingsError

C = TypeVar("C", bound=Choices)
Values = dict[str, Any]
"""Values of fields that were chosen, by name; not checked yet."""


class Command(Generic[C]):
    """A command line that becomes a record.

    Parameters
    ----------
    record
        Choices of the command.
    parser
        What :func:`build_parser` returned, perhaps with more.
    without
        As of :func:`build_parser`; a settings file must not have them either.
    complete
        Turns what ``parser`` has besides the fields into fields.
    """

    def __init__(
        self,
        record: type[C],
        parser: argparse.ArgumentParser,
        *,
        without: Collection[str] = (),
        complete: Callable[[Values], Values] = dict,
    ) -> None:
        self._record = record
        self.parser = parser
        self._complete = complete
        tables = [name for name in names_of(record) if choice_of(record, name).table]
        positional = [n for n in names_of(record) if choice_of(record, n).positional]
        self._keys = {*flag_names(record, without), *tables} - {
            *positional,
            "settings",
            "reduced",
        }

    def parse(self, argv: Sequence[str] | None) -> C:
        """Read flags, and the settings file named by ``--settings``; flags win.

        Raises
        ------
        SettingsError
            If a value is not allowed; it says whether the flag or the file is wrong.
        """
        flags = {k: v for k, v in vars(self.parser.parse_args(argv)).items() if v is not None}
        _read_options(self._record, flags)
        path: Path | None = flags.get("settings")
        source = None
        values: Values = {}
        if path is not None:
            source = Source(path)
            reduced = bool(flags.get("reduced"))
            values = read_settings_file(self._record, source, self._keys, reduced=reduced)
        return build(self._record, self._complete({**values, **flags}), source, flags)


def build(
    record: type[C], values: Mapping[str, Any], source: Source | None, flags: Collection[str]
) -> C:
    """Build a record; an error names the file if the value is from there.

    Parameters
    ----------
    record
        Choices of the command.
    values
        Value of each field that was chosen.
    source
        Settings file, if there is one.
    flags
        Fields whose values are from the command line.

    Raises
    ------
    SettingsError
        If a value is not allowed.
    """
    try:
        return record(**values)
    except ChoiceError as error:
        if source is None or error.name in flags:
            raise
        raise source.refusal(record, error) from error


def _read_options(record: type[Choices], flags: Values) -> None:
    """Turn ``KEY=VALUE`` texts into a mapping."""
    for name in flags:
        if name in names_of(record) and Mapping in map(
            get_origin, parts_of(hints_of(record)[name])
        ):
            flags[name] = dict(_key_value(spell_flag(record, name), text) for text in flags[name])


def _key_value(flag: str, text: str) -> tuple[str, float]:
    key, separator, value = text.partition("=")
    try:
        number = int(value) if value.lstrip("+-").isdecimal() else float(value)
    except ValueError:
        separator = ""
        number = 0
    if not separator:
        raise SettingsError(f"{flag} {text}: write key=number, as in proximal_mu=0.1.")
    return key, number
