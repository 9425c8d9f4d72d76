"""The settings file of a command: TOML whose keys are flags, spelled with underscores."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from nnunetv2_federated.federation.choice import (
    ChoiceError,
    Choices,
    choice_of,
    hints_of,
    names_of,
    parts_of,
    spell_key,
)
from nnunetv2_federated.federation.errors import SettingsError

C = TypeVar("C", bound=Choices)


@dataclass(frozen=True)
class Source:
    """A settings file, or a table in it."""

    path: Path
    table: str = ""

    def __str__(self) -> str:
        return f"--settings {self.path}:" + (f" [{self.table}]" if self.table else "")

    def within(self, table: str) -> Source:
        """Return a table in this file or table."""
        return Source(self.path, f"{self.table}.{table}" if self.table else table)

    def refusal(self, record: type[Choices], error: ChoiceError) -> SettingsError:
        """Return an error that names the file, the key and the value as TOML has it."""
        value = _as_toml(error.value)
        return SettingsError(
            f"{self} {spell_key(record, error.name)} = {value}: must be {error.allowed}."
        )


def read_settings_file(
    record: type[Choices], source: Source, known: Collection[str], *, reduced: bool = False
) -> dict[str, Any]:
    """Read the values of fields from a settings file; relative paths are relative to it.

    Parameters
    ----------
    record
        Choices of the command.
    source
        File to read.
    known
        Fields that the file may have.
    reduced
        Let the table ``reduced`` of the file replace what it names.

    Raises
    ------
    SettingsError
        If the file cannot be read, a key is unknown, or a value of a table is not allowed.
    """
    try:
        content = tomllib.loads(source.path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"--settings {source.path} cannot be read: {error}") from error
    less = content.pop("reduced", None)
    if reduced:
        if not isinstance(less, dict):
            raise SettingsError(
                f"--reduced: {source.path} has no table [reduced] that says what that is."
            )
        content = _overlaid(content, less)
    return _read_table(record, source, content, known)


def _read_table(
    record: type[Choices], source: Source, content: Mapping[str, Any], known: Collection[str]
) -> dict[str, Any]:
    fields = {spell_key(record, name): name for name in names_of(record) if name in known}
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key not in fields:
            raise SettingsError(
                f"{source} {key} is unknown; known are {', '.join(sorted(fields))}."
            )
        values[fields[key]] = _read_value(record, fields[key], source, value)
    return values


def _read_value(record: type[Choices], name: str, source: Source, value: object) -> object:
    """Give a value of TOML the type its field has in Python, where it is of the right form."""
    parts = list(parts_of(hints_of(record)[name]))
    if Path in parts:
        return source.path.parent / value if isinstance(value, str) else value
    if not choice_of(record, name).table:
        return value
    mapping = next((part for part in parts if get_origin(part) is Mapping), None)
    if mapping is None:
        return _build(_record_of(parts), source.within(name), value)
    if not isinstance(value, dict):
        raise SettingsError(f"{source} {name} must be tables, as [{name}.NAME].")
    if Any in get_args(mapping):  # the command reads it
        return value
    arm = _record_of(list(get_args(mapping)))
    return {key: _build(arm, source.within(name).within(key), own) for key, own in value.items()}


def _record_of(parts: list[object]) -> type[Choices]:
    return next(part for part in parts if isinstance(part, type) and issubclass(part, Choices))


def _build(record: type[C], source: Source, content: object) -> C:
    """Build the record of a table; the seed is the whole comparison's."""
    if not isinstance(content, dict):
        raise SettingsError(f"{source}: expected a table, but it is {_as_toml(content)}.")
    values = _read_table(record, source, content, set(names_of(record)) - {"seed"})
    try:
        return record(**values)
    except ChoiceError as error:
        raise source.refusal(record, error) from error
    except SettingsError as error:
        raise SettingsError(f"{source} {error}") from error


def _overlaid(content: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Replace values, table by table."""
    merged = dict(content)
    for key, value in over.items():
        below = content.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        merged[key] = _overlaid(below or {}, value) if both else value
    return merged


def _as_toml(value: object) -> str:
    """Show a value as a settings file would have it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_as_toml, value))}]"
    return f'"{value}"' if isinstance(value, str | Path) else str(value)
