"""The flags of a command, made from the record of its choices."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, get_args, get_origin

from nnunetv2_federated.federation.choice import (
    Choice,
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
        groups[title].add_argument(spell(record, name), dest=name, **_options(record, name))
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
    text = choice.help
    if default is dataclasses.MISSING or isinstance(default, bool) or choice.unset == "none":
        return text
    return f"{text} (default: {default_text(record, name)})"


def default_text(record: type[Choices], name: str) -> str:
    """Return a field's default, or what holds where that is not known here."""
    return choice_of(record, name).unset or _shown(default_of(record, name))


def spell(record: type[Choices], name: str) -> str:
    """Return a field's flag; that of a field which is on by default turns it off."""
    flag = spell_flag(record, name)
    return "--no-" + flag.removeprefix("--") if default_of(record, name) is True else flag


def _options(record: type[Choices], name: str) -> dict[str, Any]:
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
        **_number(choice, several, optional=default_of(record, name) is not dataclasses.MISSING),
        **text,
    }


def _number(choice: Choice, several: object, *, optional: bool) -> dict[str, Any]:
    """Return how many values a flag takes."""
    if choice.bare is not None:
        return {"nargs": "?", "const": choice.bare}
    if several is None:
        return {"nargs": "?"} if choice.positional and optional else {}
    if isinstance(choice.metavar, tuple):
        return {"nargs": len(choice.metavar)}
    return {"nargs": "*" if choice.may_be_empty else "+"}


def _value(choice: Choice, annotation: object) -> dict[str, Any]:
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


def _shown(default: object) -> str:
    if isinstance(default, tuple):
        return " ".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default)
