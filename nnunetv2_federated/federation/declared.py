"""What a ``dataset.json`` declares of channels and labels, and whether two declare the same.

nnU-Net takes channels and regions by their position in the file: channel *i* of an image is the
*i*-th of ``channel_names``, output *i* of a network with regions is the *i*-th region of
``labels``. Weights of sites whose files name the same in another order would be averaged
crosswise, so the order counts wherever nnU-Net's does, and only there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

FIELDS = ("channel_names", "labels", "regions_class_order", "classes")
"""Fields that are compared; ``classes`` are of whole images, as in DKFZ's image classification."""

_BY_POSITION = {
    "channel_names": "nnU-Net counts channels in the order of the file",
    "labels": "with regions, nnU-Net's output i is the i-th region of the file",
}
_NO_REGIONS = ("background", "ignore")
_INTEGER = re.compile(r"-?[0-9]{1,9}")


@dataclass(frozen=True)
class Difference:
    """A field that two sites declare differently."""

    field: str
    ours: Any
    theirs: Any
    hint: str = ""
    """Why the difference matters, where both values look alike."""


def declared_of(dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a ``dataset.json`` declares, in nnU-Net's present spelling.

    nnU-Net v1's ``modality`` is ``channel_names``; numbers written as text are numbers; without
    regions there is no ``regions_class_order``, whatever the file says. Nothing is checked here:
    what is no mapping is returned as it is.
    """
    labels = _each(dataset_json.get("labels"), _labels)
    order = dataset_json.get("regions_class_order")
    if isinstance(labels, dict) and not has_regions(labels):
        order = None
    present = {
        "channel_names": _each(
            dataset_json.get("channel_names", dataset_json.get("modality")), _channels
        ),
        "labels": labels,
        "regions_class_order": _number(order),
        "classes": _each(dataset_json.get("classes"), _numbers),
    }
    return {name: value for name, value in present.items() if value is not None}


def _each(value: Any, convert: Callable[[dict[str, Any]], Any]) -> Any:  # noqa: ANN401  # JSON
    """Convert a mapping; return anything else as it is."""
    return convert(value) if isinstance(value, dict) else value


def has_regions(labels: Mapping[str, Any]) -> bool:
    """Whether a label of more than one value makes nnU-Net train regions."""
    return any(isinstance(value, list | tuple) and len(value) > 1 for value in labels.values())


def find_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Difference | None:
    """Return the first field that two sites declare differently, ``None`` if there is none.

    Parameters
    ----------
    ours, theirs
        Declarations in any spelling; fields other than :data:`FIELDS` are compared as they are.
    """
    first, second = (_whole(side) for side in (ours, theirs))
    for field in dict.fromkeys((*FIELDS, *first, *second)):
        one, other = first.get(field), second.get(field)
        if one != other:
            return Difference(field, one, other)
        if _by_position(field, one) != _by_position(field, other):
            return Difference(field, one, other, f"the order counts: {_BY_POSITION[field]}")
    return None


def _whole(side: Mapping[str, Any]) -> dict[str, Any]:
    others = {name: side[name] for name in side if name not in (*FIELDS, "modality")}
    return {**declared_of(side), **others}


def _by_position(field: str, value: Any) -> list[tuple[str, Any]]:  # noqa: ANN401  # JSON
    """Return what nnU-Net takes by its position, in that order."""
    if not isinstance(value, dict) or field not in _BY_POSITION:
        return []
    if field == "channel_names":
        return list(value.items())
    if not has_regions(value):
        return []
    return [(name, region) for name, region in value.items() if name not in _NO_REGIONS]


def _channels(names: Mapping[str, Any]) -> dict[str, Any]:
    """Spell the number of each channel one way: ``0000`` and ``0`` are the same channel."""
    return {
        str(int(key)) if isinstance(key, str) and _INTEGER.fullmatch(key) else key: name
        for key, name in names.items()
    }


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _number(value) for name, value in values.items()}


def _labels(labels: Mapping[str, Any]) -> dict[str, Any]:
    numbers = _numbers(labels)
    if has_regions(numbers):
        return numbers
    return {
        name: value[0] if isinstance(value, list) and len(value) == 1 else value
        for name, value in numbers.items()
    }


def _number(value: Any) -> Any:  # noqa: ANN401  # JSON
    """Return the number that nnU-Net makes of a text, or of 1.0."""
    if isinstance(value, list | tuple):
        return [_number(item) for item in value]
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
