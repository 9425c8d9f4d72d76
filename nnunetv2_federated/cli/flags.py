"""Flags and settings-file keys of a command, made from the record of its choices."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_origin

from nnunetv2_federated.cli.settings_file import Source, read_settings_file
from nnunetv2_federated.federation.choice import (
    Choice,
    ChoiceError,
    Choices,
    choice_of,
    default_of,
    group_of,
    hints_of,
    names_of,
    parts_of,
    spell_flag,
    values_of,
)
from nnunetv2_federated.federation.errors import SettingsError

C = TypeVar("C", bound=Choices)
Values = dict[str, Any]
"""Values of fields that were chosen, by name; not checked yet."""


def build_parser(
    record: type[Choices],
    prog: str,
    description: str,
    *,
    usage: str | None = None,
    without: Collection[str] = (),
) -> argparse.ArgumentParser:
    """Build a parser with a flag for each field of a record.

    No flag has a default here: the record has, and the help text says it.

    Parameters
    ----------
    record
        Choices of the command.
    prog, description, usage
        As of :class:`argparse.ArgumentParser`.
    without
        Groups and fields that the command does not have.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description, usage=usage)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name in flag_names(record, without):
        choice, title = choice_of(record, name), group_of(record, name)
        if choice.positional:
            parser.add_argument(name, **_options(record, name))
            continue
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        groups[title].add_argument(_spelling(record, name), dest=name, **_options(record, name))
    return parser


def flag_names(record: type[Choices], without: Collection[str] = ()) -> list[str]:
    """Return the fields that a command line can say, group by group."""
    names = [
        name
        for name in names_of(record)
        if not choice_of(record, name).table
        and name not in without
        and group_of(record, name) not in without
    ]
    groups = list(dict.fromkeys(group_of(record, name) for name in names))
    # a record's own fields come after those of its bases, and its first base after the last
    return sorted(names, key=lambda name: -groups.index(group_of(record, name)))


def help_of(record: type[Choices], name: str) -> str:
    """Return a field's help text with the default."""
    choice, default = choice_of(record, name), default_of(record, name)
    if default is dataclasses.MISSING or isinstance(default, bool):
        return choice.help
    return f"{choice.help} (default: {choice.unset or _shown(default)})"


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
        self._parser = parser
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
        flags = {k: v for k, v in vars(self._parser.parse_args(argv)).items() if v is not None}
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


def _spelling(record: type[Choices], name: str) -> str:
    flag = spell_flag(record, name)
    return "--no-" + flag.removeprefix("--") if default_of(record, name) is True else flag


def _options(record: type[Choices], name: str) -> Values:
    """Return the arguments of :meth:`argparse.ArgumentParser.add_argument`."""
    choice, annotation = choice_of(record, name), hints_of(record)[name]
    text = {"help": help_of(record, name).replace("%", "%%")}
    parts = list(parts_of(annotation))
    if bool in parts:
        default = default_of(record, name)
        without = {"help": f"do not {choice.help}"} if default else text
        return {"action": f"store_{str(not default).lower()}", "default": None, **without}
    if choice.repeated:
        return {"action": "append", "metavar": choice.metavar, **text}
    several = next((part for part in parts if get_origin(part) is tuple), None)
    item = several if several is None else get_args(several)[0]
    return {
        **_value(choice, annotation if item is None else item),
        **_number(choice, several),
        **text,
    }


def _number(choice: Choice, several: object) -> Values:
    if several is None:
        return {}
    fixed = isinstance(choice.metavar, tuple)
    return {"nargs": len(choice.metavar or ()) if fixed else "+"}


def _value(choice: Choice, annotation: object) -> Values:
    """Return how one value is read, and its name in the usage line."""
    if words := values_of(annotation):
        return {"choices": words}
    kinds = {part for part in parts_of(annotation) if isinstance(part, type)}
    metavar = {"metavar": choice.metavar} if choice.metavar else {}
    return {"type": _reader(kinds, list(parts_of(annotation))), **metavar}


def _reader(kinds: set[type], parts: list[object]) -> Callable[[str], object]:
    """Return what turns the text of a flag into a value."""
    if float in kinds:
        words = any(get_origin(part) is not None for part in parts)
        return _number_or_text if words else float
    return next((kind for kind in (str, int, Path) if kind in kinds), str)


def _number_or_text(text: str) -> float | str:
    """Read a number; the record says what else is allowed."""
    try:
        return float(text)
    except ValueError:
        return text


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


def _shown(default: object) -> str:
    if isinstance(default, tuple):
        return " ".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default)
