"""Read the table ``[search]`` of a settings file.

It names settings of a federation, each with the values to try; ``"STRATEGY.OPTION"`` names an
option that only trials of that strategy have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nnunetv2_federated.federation.choice import (
    ChoiceError,
    allowed_by,
    hints_of,
    names_of,
    parts_of,
    spell_key,
    values_of,
)
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.search_space import (
    OneOf,
    Parameter,
    Range,
    SearchSpace,
    Value,
)
from nnunetv2_federated.federation.settings import STRATEGIES, FederationSettings

MAY_VARY = (
    "initial_lr",
    "lr_schedule",
    "momentum",
    "weight_decay",
    "local_epochs",
    "iterations_per_epoch",
    "local_momentum",
    "batchnorm",
    "strategy",
    "weighting",
    "transport_dtype",
)
"""Settings that a tuning may vary."""

_MORE_WORK = "it changes the work of a round, and a trial would win by doing more of it"
_WHY_NOT = {
    "rounds": "trials differ in the share of their rounds that they get",
    "batch_size": _MORE_WORK,
    "sites_per_round": _MORE_WORK,
    "seed": "a lucky seed is no better setting",
}
_RANGE = ("low", "high", "log")


def read_search_space(table: Mapping[str, Any], base: FederationSettings) -> SearchSpace:
    """Read the table ``[search]``.

    Parameters
    ----------
    table
        Values by name: a list of values, or ``{low, high}`` with ``log = true`` to draw logarithms.
        An option's name is ``STRATEGY.OPTION``, or stands in a table of the strategy.
    base
        Settings that trials have where the table says nothing.

    Raises
    ------
    SettingsError
        If a name is unknown, a setting may not vary, a value is not allowed, or no trial could have
        an option.
    """
    parameters = tuple(_parameter(name, values) for name, values in _flat(table))
    if not parameters:
        raise SettingsError(
            "[search]: names no setting to vary; give a table such as [search] with initial_lr = "
            "{low = 0.001, high = 0.1, log = true}."
        )
    names = [parameter.name for parameter in parameters]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(
                f"[search] {name}: stands there twice, as {name} and in a table of the strategy; "
                "leave one of them out."
            )
    space = SearchSpace(parameters)
    tried = space.strategies(base)
    for parameter in parameters:
        if parameter.strategy is not None and parameter.strategy not in tried:
            raise SettingsError(
                f"[search] {parameter.name}: no trial has strategy {parameter.strategy}, only "
                f"{', '.join(tried)}; add it to strategy, or leave the option out."
            )
    return space


def _flat(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield names and values, with the tables of strategies spelled ``STRATEGY.OPTION``."""
    for name, value in table.items():
        if name in STRATEGIES and isinstance(value, Mapping):
            yield from ((f"{name}.{option}", own) for option, own in value.items())
        else:
            yield name, value


def _parameter(name: str, given: object) -> Parameter:
    head, dot, _ = name.partition(".")
    if dot and head in STRATEGIES:
        return Parameter(name, _read_values(name, given, None))
    _check_may_vary(name)
    return Parameter(name, _read_values(name, given, name))


def _check_may_vary(name: str) -> None:
    if name in MAY_VARY:
        return
    allowed = f"those that may vary are {', '.join(MAY_VARY)}, and options as fedprox.proximal_mu."
    if name not in {spell_key(FederationSettings, own) for own in names_of(FederationSettings)}:
        raise SettingsError(f"[search] {name}: is no setting; {allowed}")
    why = _WHY_NOT.get(name, "it says how a training runs or what is promised, not what is learned")
    raise SettingsError(f"[search] {name}: may not vary: {why}; {allowed}")


def _read_values(name: str, given: object, setting: str | None) -> Range | OneOf:
    """Read the values of a setting, or of an option, whose values Flower checks later."""
    if isinstance(given, list | tuple):
        return _read_list(name, list(given), setting)
    if isinstance(given, Mapping):
        return _read_range(name, given, setting)
    raise SettingsError(
        f"[search] {name} = {given}: give a list of values, or {{low = ..., high = ...}}; one "
        "value that all trials have stands outside [search]."
    )


def _same(value: object) -> str:
    """Return a text that equal values share: 0 and 0.0 are one."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return repr(float(str(value)) if number else value)


def _read_list(name: str, given: list[Any], setting: str | None) -> OneOf:
    if len(given) < 2 or len(set(map(_same, given))) < len(given):
        raise SettingsError(f"[search] {name} = {given}: give at least two values, each once.")
    return OneOf(tuple(_checked(name, value, setting) for value in given))


def _read_range(name: str, given: Mapping[str, Any], setting: str | None) -> Range:
    unknown = [key for key in given if key not in _RANGE]
    if unknown or not {"low", "high"} <= given.keys():
        wrong = f"{unknown[0]} is unknown" if unknown else "low or high is missing"
        raise SettingsError(f"[search] {name}: {wrong}; a range is {{low = ..., high = ...}}.")
    words = values_of(hints_of(FederationSettings)[setting]) if setting else ()
    if words:
        raise SettingsError(
            f"[search] {name}: has words and no range; list some of {', '.join(words)}."
        )
    low, high = (_checked(name, given[key], setting) for key in ("low", "high"))
    log = given.get("log", False)
    _check_ends(name, low, high, log)
    return Range(float(low), float(high), log, _is_whole(setting, low, high))


def _check_ends(name: str, low: Value, high: Value, log: object) -> None:
    if not isinstance(log, bool):
        raise SettingsError(f"[search] {name}: log = {log}: must be true or false.")
    if not float(low) < float(high):
        raise SettingsError(f"[search] {name}: low = {low}, high = {high}: low must be below high.")
    if log and float(low) <= 0:
        raise SettingsError(f"[search] {name}: low = {low} with log = true: must be above 0.")


def _is_whole(setting: str | None, low: Value, high: Value) -> bool:
    """Whether only whole numbers are meant: for an option, if both ends are written as such."""
    if setting is None:
        return isinstance(low, int) and isinstance(high, int)
    return float not in parts_of(hints_of(FederationSettings)[setting])


def _checked(name: str, value: object, setting: str | None) -> Value:
    """Return a value that the setting allows."""
    if setting is None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SettingsError(f"[search] {name}: {value}: must be a number.")
        return value
    given: dict[str, Any] = {setting: value}
    try:
        own: Value | None = getattr(FederationSettings(**given), setting)
    except ChoiceError as error:
        raise SettingsError(f"[search] {name}: {value}: must be {error.allowed}.") from error
    if own is None:
        allowed = allowed_by(hints_of(FederationSettings)[setting])
        raise SettingsError(f"[search] {name}: {value}: must be {allowed}.")
    return own
