"""What ``dataset.json`` says channels and labels mean, and whether two files say the same.

nnU-Net takes channels and regions by their position in the file: channel *i* of an image is the
*i*-th of ``channel_names``, output *i* of a network with regions is the *i*-th region of
``labels``. Weights of sites whose files name the same in another order would be averaged
crosswise, so the order counts wherever nnU-Net's does, and only there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FIELDS = ("channel_names", "labels", "regions_class_order", "classes")
"""The last are of images as a whole, as in DKFZ's image classification."""

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
    """Why it matters, where both look alike."""


def declared_of(dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a ``dataset.json`` declares, in nnU-Net's present spelling.

    nnU-Net v1's ``modality`` is ``channel_names``; numbers written as text are numbers; without
    regions there is no ``regions_class_order``, whatever the file says. Nothing is checked here:
    what is no mapping is returned as it is.
    """
    present = dict(dataset_json)
    if "channel_names" not in present and "modality" in present:
        present["channel_names"] = present["modality"]
    if isinstance(present.get("channel_names"), dict):
        present["channel_names"] = {
            _channel(key): name for key, name in present["channel_names"].items()
        }
    if isinstance(present.get("labels"), dict):
        present["labels"] = _labels(present["labels"])
        if not has_regions(present["labels"]):
            present.pop("regions_class_order", None)
    if "regions_class_order" in present:
        present["regions_class_order"] = _number(present["regions_class_order"])
    if isinstance(present.get("classes"), dict):
        present["classes"] = {name: _number(index) for name, index in present["classes"].items()}
    return {name: present[name] for name in FIELDS if present.get(name) is not None}


def has_regions(labels: Mapping[str, Any]) -> bool:
    """Whether a label of more than one value makes nnU-Net train regions."""
    return any(isinstance(value, list | tuple) and len(value) > 1 for value in labels.values())


def find_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Difference | None:
    """Return the first field that two sites declare differently, ``None`` if there is none.

    Parameters
    ----------
    ours, theirs
        Declarations, of whatever spelling; fields other than :data:`FIELDS` are compared as they
        are.
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


def _channel(key: str) -> str:
    """``0000`` and ``0`` are the same channel."""
    return str(int(key)) if isinstance(key, str) and _INTEGER.fullmatch(key) else key


def _labels(labels: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {name: _number(value) for name, value in labels.items()}
    if has_regions(numbers):
        return numbers
    return {
        name: value[0] if isinstance(value, list) and len(value) == 1 else value
        for name, value in numbers.items()
    }


def _number(value: Any) -> Any:  # noqa: ANN401  # JSON
    """Numbers written as text, or as 1.0, are the numbers that nnU-Net makes of them."""
    if isinstance(value, list | tuple):
        return [_number(item) for item in value]
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
