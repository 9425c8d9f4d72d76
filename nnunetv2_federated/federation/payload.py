"""What crosses a border as JSON text: read and written by one checked type, field by field."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.names import check_fold, check_name
from nnunetv2_federated.federation.text import clean

MOST_CASES = 10**6
"""Largest number of cases of one site."""

_MOST_ROUNDS = 10**6
LARGEST = 1e12
_MOST_VOXELS = 1e18
MEGABYTE = 2**20


def _plain(value: str) -> str:
    try:
        return check_name("name", value)
    except SettingsError as error:
        raise ValueError(str(error)) from error


def _fold(value: int | str) -> int | str:
    try:
        return check_fold(value)
    except SettingsError as error:
        raise ValueError(str(error)) from error


def _short(value: str) -> str:
    if clean(value) != value:
        raise ValueError("is not one line of at most 300 printable characters")
    return value


Name = Annotated[str, Field(max_length=128), AfterValidator(_plain)]
Fold = Annotated[int | str, AfterValidator(_fold)]
SiteName = Annotated[str, Field(min_length=1), AfterValidator(_short)]
"""On one machine a site may be called as its operator likes; over a network it is a plain name."""
Text = Annotated[str, Field(max_length=4000), AfterValidator(clean)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Cases = Annotated[int, Field(ge=0, le=MOST_CASES)]
SomeCases = Annotated[int, Field(ge=1, le=MOST_CASES)]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Voxels = Annotated[list[Annotated[float, Field(ge=0, le=_MOST_VOXELS)]], Field(max_length=10_000)]
Iterations = Annotated[int, Field(ge=0, le=10**7)]
Round = Annotated[int, Field(ge=0, le=_MOST_ROUNDS)]
MinCases = Annotated[int, Field(ge=1, le=MOST_CASES)]
FoldsByConfiguration = Annotated[
    dict[Name, Annotated[list[Fold], Field(min_length=1, max_length=100)]],
    Field(min_length=1, max_length=20),
]
Names = Annotated[list[Name], Field(max_length=100)]
Packages = Annotated[dict[Text, Text], Field(max_length=100)]

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""No value is converted, no unknown key is passed over, no number is infinite or NaN."""


class Payload:
    """JSON text in, JSON text out; an unknown or missing key is refused."""

    most_bytes: ClassVar[int] = MEGABYTE
    """Longest text that is looked at."""

    def to_json(self) -> str:
        """Return the payload as text."""
        return json.dumps(asdict(self))  # type: ignore[call-overload]  # subclasses are dataclasses

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read and check a payload.

        Raises
        ------
        SiteError
            If the text is too long or too deep, or a field does not fit; names the first of them.
        """
        if len(text) > cls.most_bytes:
            raise SiteError(f"not a valid {cls.__name__}: {len(text)} characters are too many")
        try:
            payload: Self = _adapter(cls).validate_json(text)
        except ValidationError as error:
            raise SiteError(f"not a valid {cls.__name__}: {first_problem(error)}") from None
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise SiteError(f"not a valid {cls.__name__}: {clean(error)}") from None
        return payload


_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def _adapter(kind: type) -> TypeAdapter[Any]:
    """Build the reader of a payload's type, once."""
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def first_problem(error: ValidationError) -> str:
    """Say in one line where a value does not fit, and why; the value itself is left out."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(map(str, problem["loc"]))
    return clean(f"{place}: {problem['msg']}" if place else problem["msg"])
