"""Check plans from another machine before nnU-Net builds code and arrays from them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from nnunetv2_federated.federation.errors import SettingsError, SiteError
from nnunetv2_federated.federation.names import is_plain_name
from nnunetv2_federated.federation.text import clean
from nnunetv2_federated.nnunet.planning.allowed_arguments import (
    LEGACY_NETWORK,
    REGISTER,
    SIZES,
    TRANSPOSED,
    ArgumentsOf,
    Code,
)
from nnunetv2_federated.nnunet.planning.allowed_code import DOTTED_KINDS, definition, resolve

_DEEPEST = 16
_MOST_VALUES = 100_000
_LONGEST_TEXT = 1000
_LARGEST = 2**53
"""Integers up to this one are the same in JSON of every language (RFC 8259, section 6)."""
_MOST_CONFIGURATIONS = 100
_OF_PLANS = {
    "image_reader_writer": "reader/writer",
    "label_manager": "label manager",
    "experiment_planner_used": "planner",
}
_OF_CONFIGURATION = {"preprocessor_name": "preprocessor"}
_RESAMPLINGS = ("resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities")
_PLAIN_TEXT = re.compile(r"[A-Za-z0-9_+ -]{0,64}")
_NOT_FOR_OWN = ("pretrained", "checkpoint")


def check_plans(
    plans: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    site: str,
    allowed_modules: Sequence[str] = (),
) -> None:
    """Make sure that plans name only registered code, with allowed arguments and sizes.

    Parameters
    ----------
    plans
        Plans read from JSON, from any source.
    dataset_json
        ``dataset.json`` of the dataset that the plans are for.
    site
        Name of the site, for the message.
    allowed_modules
        Modules of the hospital's own networks and their parts.

    Raises
    ------
    SiteError
        If they do not: names the key of the plans, its value, and what is allowed.
    """
    try:
        _require(isinstance(plans, dict), "they are not an object")
        _check_json(plans)
        check_dataset_json(dataset_json)
        _check_whole(plans, allowed_modules)
    except SettingsError as error:
        raise SiteError(f"site {site}: refused plans: {error}") from error


def check_dataset_json(dataset_json: Mapping[str, Any]) -> None:
    """Make sure that ``dataset.json`` names a reader/writer of nnU-Net, if any.

    Raises
    ------
    SettingsError
        If it names something else.
    """
    name = dataset_json.get("overwrite_image_reader_writer", "None")
    if name != "None":  # nnU-Net's spelling of none
        with_key("overwrite_image_reader_writer of dataset.json", "reader/writer", name)


def with_key(key: str, kind: str, name: object, allowed_modules: Sequence[str] = ()) -> Any:  # noqa: ANN401  # a class or function
    """Return the code that a name stands for; an error gives the key at which the name stands.

    Raises
    ------
    SettingsError
        If it is not allowed.
    """
    try:
        return resolve(kind, name, allowed_modules)
    except SettingsError as error:
        raise SettingsError(f"{key}: {error}") from error


def configuration_of(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a configuration with all it inherits, and its network as nnU-Net will build it.

    Raises
    ------
    SettingsError
        If the plans lack a parent, one is its own descendant, or the network lacks a value.
    """
    configurations = plans["configurations"]
    merged: dict[str, Any] = {}
    for ancestor in _ancestors(configurations, name):
        merged = {**configurations[ancestor], **merged}
    key = f"configurations.{clean(name, 40)}"
    _check_fields(key, SIZES, merged, whole=False)
    if "architecture" in merged:
        return deepcopy(merged)
    _check_fields(key, LEGACY_NETWORK, merged, whole=False)
    converted: dict[str, Any] = ConfigurationManager(deepcopy(merged)).configuration
    return converted


def _check_json(plans: object) -> None:
    """Refuse what is too deep, long or large.

    Plans may be nested as deep as their sender likes: a list of what is still to be checked takes
    the place of recursion.
    """
    waiting, values = [(plans, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        values += 1
        if values > _MOST_VALUES or depth > _DEEPEST:
            raise SettingsError(
                f"they are too large: at most {_MOST_VALUES} values, nested {_DEEPEST} deep"
            )
        if isinstance(value, dict):
            waiting += [(item, depth + 1) for pair in value.items() for item in pair]
        elif isinstance(value, list):
            waiting += [(item, depth + 1) for item in value]
        else:
            _check_scalar(value)


def _check_scalar(value: object) -> None:
    if isinstance(value, str):
        _require(len(value) <= _LONGEST_TEXT, f"{clean(value, 40)}: a text is too long")
    elif type(value) is int:
        _require(abs(value) <= _LARGEST, "a number is too large")
    elif value is not None and type(value) not in (bool, float):
        raise SettingsError(f"{type(value).__name__} is not JSON")


def _require(fits: bool, message: str) -> None:
    if not fits:
        raise SettingsError(message)


def _check_whole(plans: Mapping[str, Any], allowed_modules: Sequence[str]) -> None:
    configurations = plans.get("configurations")
    if not (
        isinstance(configurations, dict)
        and 0 < len(configurations) <= _MOST_CONFIGURATIONS
        and all(is_plain_name(n) and isinstance(c, dict) for n, c in configurations.items())
    ):
        raise SettingsError(
            f"configurations: give 1 to {_MOST_CONFIGURATIONS} objects with plain names"
        )
    _check_fields("plans", TRANSPOSED, plans, whole=False)
    for field in TRANSPOSED.model_fields:
        _require(
            sorted(plans.get(field, range(3))) == [0, 1, 2], f"{field}: give 0, 1 and 2 in an order"
        )
    for key, kind in _OF_PLANS.items():
        if key in plans:
            with_key(key, kind, plans[key])
    for name in configurations:
        _check_configuration(
            f"configurations.{name}", configuration_of(plans, name), allowed_modules
        )


def _ancestors(configurations: Mapping[str, Any], name: str) -> Iterator[str]:
    seen: list[str] = []
    current: Any = name
    while True:
        if not isinstance(current, str) or current not in configurations:
            raise SettingsError(
                f"configurations.{clean(seen[-1] if seen else name, 40)}.inherits_from: the plans "
                f"have no {clean(repr(current), 80)} but {clean(', '.join(configurations))}"
            )
        if current in seen:
            raise SettingsError(f"configurations.{clean(current, 40)} inherits from itself")
        seen.append(current)
        yield current
        if "inherits_from" not in configurations[current]:
            return
        current = configurations[current]["inherits_from"]


def _check_configuration(
    key: str, configuration: Mapping[str, Any], allowed_modules: Sequence[str]
) -> None:
    for field, kind in _OF_CONFIGURATION.items():
        if field in configuration:
            with_key(f"{key}.{field}", kind, configuration[field])
    for name in configuration.get("normalization_schemes", ()):
        with_key(f"{key}.normalization_schemes", "normalization scheme", name)
    for field in _RESAMPLINGS:
        if field in configuration:
            given = configuration.get(f"{field}_kwargs")
            _check_call(f"{key}.{field}", "resampling function", configuration[field], given)
    following = configuration.get("next_stage") or []
    stages = [
        configuration.get("previous_stage"),
        *([following] if isinstance(following, str) else following),
    ]
    for stage in stages:
        _require(
            stage is None or is_plain_name(stage),
            f"{key}: {clean(repr(stage), 80)} is not a name of a stage",
        )
    _check_architecture(f"{key}.architecture", configuration["architecture"], allowed_modules)


def _check_architecture(key: str, architecture: object, allowed_modules: Sequence[str]) -> None:
    needed = {"network_class_name", "arch_kwargs", "_kw_requires_import"}
    if not isinstance(architecture, dict) or not needed <= set(architecture):
        raise SettingsError(f"{key}: give {', '.join(sorted(needed))}")
    imported = architecture["_kw_requires_import"]
    given = architecture["arch_kwargs"]
    if not isinstance(imported, list) or not all(isinstance(name, str) for name in imported):
        raise SettingsError(f"{key}._kw_requires_import: give a list of names of arguments")
    _require(
        len(imported) == len(set(imported)), f"{key}._kw_requires_import: give each name only once"
    )
    _check_call(
        key,
        "network",
        architecture["network_class_name"],
        given,
        imported=imported,
        allowed_modules=allowed_modules,
    )


def _check_call(
    key: str,
    kind: str,
    name: object,
    given: object,
    *,
    imported: Sequence[str] = (),
    allowed_modules: Sequence[str] = (),
) -> None:
    """Check a callable and all its arguments, and in turn the callables among the arguments."""
    code = with_key(key, kind, name, allowed_modules)
    if not isinstance(given, dict):
        raise SettingsError(f"{key}: the arguments of {clean(name, 80)} are not an object")
    for argument in imported:
        _require(
            argument in given,
            f"{key}._kw_requires_import: there is no argument {clean(argument, 80)}",
        )
    model = REGISTER[kind].get(definition(code))
    if model is None:
        _check_own_arguments(key, given, imported, allowed_modules)
        return
    _check_fields(f"{key}, {code.__name__}", model, given, whole=True)
    kinds = _kinds_of_code(model)
    _check_imported(key, given, imported, kinds)
    for argument, kind_of_argument in kinds.items():
        part, inner = given.get(argument), _arguments_of(argument, model, given)
        where = f"{key}.{argument}"
        if part is not None:
            _check_call(where, kind_of_argument, part, inner, allowed_modules=allowed_modules)
        else:
            _require(not inner, f"{where}: arguments are given for none")


def _kinds_of_code(model: type[BaseModel]) -> dict[str, str]:
    """Return the arguments that name code, and the kind that each must name."""
    return {
        name: mark.kind
        for name, field in model.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, Code)
    }


def _arguments_of(
    argument: str, model: type[BaseModel], given: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the arguments that are given for the code that ``argument`` names."""
    for name, field in model.model_fields.items():
        if ArgumentsOf(argument) in field.metadata:
            return given.get(name) or {}
    return {}


def _check_imported(
    key: str, given: Mapping[str, Any], imported: Sequence[str], kinds: Mapping[str, str]
) -> None:
    """Make sure that ``_kw_requires_import`` lists the given names of code, and only these."""
    named = {argument for argument in kinds if given.get(argument) is not None}
    for argument in {*imported, *named}:
        _require(
            argument in kinds and argument in imported,
            f"{key}._kw_requires_import: names of code, and only these, stand there; "
            f"{clean(argument, 80)} does not fit",
        )


def _check_own_arguments(
    key: str, given: Mapping[str, Any], imported: Sequence[str], allowed_modules: Sequence[str]
) -> None:
    """Check the arguments of a hospital's own code: allowed are code, numbers and plain words."""
    for argument in given:
        _require(
            argument.isidentifier() and not argument.startswith(_NOT_FOR_OWN),
            f"{key}: {clean(argument, 80)} is not an allowed argument",
        )
        if argument not in imported:
            _check_plain(f"{key}.{argument}", given[argument])
        elif given[argument] is not None:
            _check_any_part(f"{key}.{argument}", given[argument], allowed_modules)


def _check_plain(key: str, value: object) -> None:
    """Refuse text that could be a path, a file or a URL."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, str):
            _require(
                _PLAIN_TEXT.fullmatch(item) is not None,
                f"{key}: {clean(repr(item), 80)} is no plain word of letters, digits, _, +, -",
            )


def _check_any_part(key: str, name: object, allowed_modules: Sequence[str]) -> None:
    for kind in DOTTED_KINDS:
        try:
            resolve(kind, name, allowed_modules)
        except SettingsError:
            continue
        return
    raise SettingsError(
        f"{key}: {clean(repr(name), 80)} is neither code of the register nor of allowed_modules"
    )


def _check_fields(
    key: str, model: type[BaseModel], given: Mapping[str, Any], *, whole: bool
) -> None:
    """Check values by a model.

    Parameters
    ----------
    key
        Position in the plans, for the message.
    model
        Names, types and bounds of the values.
    given
        Values by name.
    whole
        Whether a name that the model does not know is refused; otherwise it is not looked at.
    """
    known = given if whole else {n: given[n] for n in model.model_fields if n in given}
    try:
        model.model_validate(known)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise SettingsError(f"{key}: {_problem(first, known, model)}") from error


def _problem(first: ErrorDetails, known: Mapping[str, Any], model: type[BaseModel]) -> str:
    """Say in words what pydantic found first."""
    path = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in known)
    where = clean(path or first["loc"][0], 80)
    if first["type"] == "extra_forbidden":
        allowed = ", ".join(model.model_fields) or "none"
        return f"{where} is not an allowed argument; allowed is {allowed}"
    if first["type"] == "missing":
        return f"{where} is missing"
    return f"{where} is {clean(repr(first['input']), 80)}: {first['msg']}"
