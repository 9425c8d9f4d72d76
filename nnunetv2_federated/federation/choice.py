"""Records of what a user can choose: each default, allowed value and help text stands once.

A record is a frozen dataclass that pydantic validates when it is built. What a command line, a
settings file and the reference page say about a field is taken from its annotation:

``rounds: Annotated[Count, Choice("rounds of the federation", "N")] = 120``
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Self,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from nnunetv2_federated.federation.errors import SettingsError


@dataclass(frozen=True)
class Choice:
    """Help text of a field, and its spelling in flags and settings files."""

    help: str
    """Text for ``--help`` and the reference page, without the default."""
    metavar: str | tuple[str, ...] | None = None
    flag: str = ""
    """Spelling on a command line; ``--`` and the name with dashes if empty."""
    key: str = ""
    """Spelling in a settings file; the name if empty."""
    unset: str = ""
    """What holds where the default is ``None``, such as ``the trainer's, 0.01``."""
    positional: bool = False
    """Whether the command line takes it without a flag."""
    repeated: bool = False
    """Whether several values repeat the flag, in place of following it."""
    table: bool = False
    """Whether only a settings file has it, as a table."""
    bare: str | None = None
    """Value of a flag that is given without one; ``None`` if it needs one."""
    may_be_empty: bool = False
    """Whether a flag that takes several values may be given without any."""


@dataclass(frozen=True)
class Allowed:
    """The values a type allows, in words: ``a whole number of at least 1``."""

    text: str


class ChoiceError(SettingsError):
    """A value that is not allowed, by the name of its field."""

    def __init__(self, record: type[Choices], name: str, value: object, allowed: str) -> None:
        self.name = name
        self.value = value
        self.allowed = allowed
        super().__init__(f"{spell_flag(record, name)} {_shown(value)}: must be {allowed}.")


R = TypeVar("R")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def record(cls: type[R]) -> type[R]:
    """Make a class a record of choices that refuses a bad value with :class:`ChoiceError`."""
    config = ConfigDict(strict=True, extra="forbid")
    made = checked_dataclass(frozen=True, kw_only=True, config=config)(cls)
    build: Callable[..., None] = made.__init__

    @functools.wraps(build)
    def __init__(self: Choices, **values: Any) -> None:  # noqa: ANN401, N807  # of any field
        try:
            build(self, **values)
        except ValidationError as error:
            raise _explain(type(self), values, error) from None
        object.__setattr__(self, "_chosen", frozenset(values))

    made.__init__ = __init__  # type: ignore[method-assign,assignment]
    return made  # type: ignore[return-value]


@record
class Choices:
    """Base class of the records."""

    group: ClassVar[str] = ""
    """Heading of the flags that a class declares."""

    @property
    def chosen(self) -> frozenset[str]:
        """Names of the fields that were given when the record was built."""
        names: frozenset[str] = self.__dict__["_chosen"]
        return names

    def given(self) -> dict[str, Any]:
        """Return the fields that were given, by name."""
        return {name: getattr(self, name) for name in names_of(type(self)) if name in self.chosen}

    def changed(self, **changes: Any) -> Self:  # noqa: ANN401  # of any field
        """Return the record with other values; they count as chosen, too."""
        return type(self)(**{**self.given(), **changes})

    def part(self, record: type[C]) -> C:
        """Return the fields that a base class, or another record, has as well."""
        names = names_of(record)
        return record(**{name: value for name, value in self.given().items() if name in names})


C = TypeVar("C", bound=Choices)


def require(ok: bool, flag: str, value: object, allowed: str) -> None:
    """Raise ``SettingsError`` that a flag must be what is allowed, unless it is."""
    if not ok:
        raise SettingsError(f"{flag} {value}: must be {allowed}.")


def names_of(record: type[Choices]) -> tuple[str, ...]:
    """Return the names of a record's fields."""
    return tuple(field.name for field in dataclasses.fields(record))


def hints_of(record: type[Choices]) -> Mapping[str, Any]:
    """Return the annotation of each field, with all that is attached to it."""
    return _hints(cast("Hashable", record))


@functools.cache
def _hints(record: Hashable) -> Mapping[str, Any]:
    return get_type_hints(record, include_extras=True)


def choice_of(record: type[Choices], name: str) -> Choice:
    """Return the help text and the spelling of a field."""
    return next(m for m in get_args(hints_of(record)[name])[1:] if isinstance(m, Choice))


def group_of(record: type[Choices], name: str) -> str:
    """Return the heading of the class that declares a field first."""
    owners = (c for c in reversed(record.__mro__) if name in inspect.get_annotations(c))
    return str(vars(next(owners)).get("group", ""))


def default_of(record: type[Choices], name: str) -> object:
    """Return a field's default; ``dataclasses.MISSING`` if it has none."""
    field = next(f for f in dataclasses.fields(record) if f.name == name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def spell_flag(record: type[Choices], name: str) -> str:
    """Return a field as a command line spells it."""
    choice = choice_of(record, name)
    return name if choice.positional else choice.flag or "--" + name.replace("_", "-")


def spell_key(record: type[Choices], name: str) -> str:
    """Return a field as a settings file spells it."""
    return choice_of(record, name).key or name


def parts_of(annotation: object) -> Iterator[object]:
    """Yield a type, what it is made of, and what is attached to it; ``None`` is left out."""
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        for part in get_args(annotation):
            yield from parts_of(part)
    elif annotation is not types.NoneType:
        yield annotation


def values_of(annotation: object) -> tuple[str, ...]:
    """Return the words that a type allows; empty unless it is a choice between words."""
    found = list(parts_of(annotation))
    literals = [part for part in found if get_origin(part) is Literal]
    rest = [part for part in found if isinstance(part, type) or get_origin(part) is tuple]
    return tuple(get_args(literals[0])) if literals and not rest else ()


def allowed_by(annotation: object) -> str:
    """Say in words what a type allows."""
    parts = list(parts_of(annotation))
    words = [part.text for part in parts if isinstance(part, Allowed)]
    if words:
        return words[-1]
    if values := values_of(annotation):
        return "one of " + ", ".join(values)
    kinds = (part for part in parts if isinstance(part, type) or get_origin(part))
    return next((_WORDS[kind] for kind in kinds if kind in _WORDS), "of another kind")


_WORDS: Mapping[object, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    tuple[str, ...]: "a list of texts",
}


def _explain(record: type[Choices], values: Mapping[str, Any], error: ValidationError) -> Exception:
    """Put a pydantic error into one line for the user."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    if name not in names_of(record):
        known = ", ".join(sorted(spell_key(record, other) for other in names_of(record)))
        return SettingsError(f"{name} is unknown; known are {known}.")
    if name not in values:
        return SettingsError(f"{spell_flag(record, name)} is missing: see --help.")
    return ChoiceError(record, name, values[name], allowed_by(hints_of(record)[name]))


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


FromList = BeforeValidator(_as_tuple)
"""Lets a list, as TOML and argparse have it, be a tuple."""

Count = Annotated[int, Field(ge=1), Allowed("a whole number of at least 1")]
Whole = Annotated[int, Field(ge=0), Allowed("a whole number of at least 0")]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False), Allowed("a number of seconds above 0")]
Texts = Annotated[tuple[str, ...], FromList, Allowed("a list of texts")]

DEFAULT_SEED = 12345
Seed = Annotated[
    Whole, Choice("random seed of the partition, the sampling of sites and the training", "N")
]
