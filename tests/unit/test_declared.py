"""Whether two ``dataset.json`` say the same: by position where nnU-Net takes it so."""

from __future__ import annotations

from typing import Any

import pytest

from nnunetv2_federated.federation.declared import declared_of, find_difference
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.nnunet.data.dataset_json import check_declaration

LIVER = {"background": 0, "liver": [1, 2, 3], "lesion": [2, 3], "necrosis": 3}
PLAIN = {"background": 0, "kidney": 1, "tumour": 2, "ignore": 3}
PET_CT = {"0": "PET", "1": "CT"}


def sorted_keys(content: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(content.items()))


SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "labels in another order": ({"labels": PLAIN}, {"labels": sorted_keys(PLAIN)}),
    "background elsewhere": (
        {"labels": LIVER},
        {"labels": {**{k: LIVER[k] for k in ("liver", "lesion", "necrosis")}, "background": 0}},
    ),
    "numbers as text": (
        {"labels": {"background": 0, "kidney": 1}},
        {"labels": {"background": "0", "kidney": "1"}},
    ),
    "a list of one": (
        {"labels": {"background": 0, "kidney": 1}},
        {"labels": {"background": 0, "kidney": [1]}},
    ),
    "an older key": ({"channel_names": PET_CT}, {"modality": PET_CT}),
    "numbers of channels as in file names": (
        {"channel_names": PET_CT},
        {"channel_names": {"0000": "PET", "0001": "CT"}},
    ),
    "an order of regions where there are none": (
        {"labels": PLAIN},
        {"labels": PLAIN, "regions_class_order": [1, 2]},
    ),
    "classes in another order": (
        {"classes": {"pneumonia": 1, "normal": 0}},
        {"classes": {"normal": "0", "pneumonia": 1}},
    ),
}


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME)
def test_the_same_said_in_another_way(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert find_difference(one, other) is None
    assert find_difference(other, one) is None
    assert declared_of(one) == declared_of(other)


OTHER: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "regions in another order": (
        {"labels": LIVER},
        {"labels": sorted_keys(LIVER)},
        "labels",
        "output i is the i-th region",
    ),
    "channels the other way round": (
        {"channel_names": PET_CT},
        {"channel_names": {"0": "CT", "1": "PET"}},
        "channel_names",
        "",
    ),
    "channels in another order": (
        {"channel_names": PET_CT},
        {"channel_names": {"1": "CT", "0": "PET"}},
        "channel_names",
        "channels in the order of the file",
    ),
    "channels the other way round, by an older key": (
        {"modality": PET_CT},
        {"modality": {"0": "CT", "1": "PET"}},
        "channel_names",
        "",
    ),
    "the order that regions are painted in": (
        {"labels": LIVER, "regions_class_order": [1, 2, 3]},
        {"labels": LIVER, "regions_class_order": [3, 2, 1]},
        "regions_class_order",
        "",
    ),
    "a region in another order": (  # results name it by its numbers as they stand
        {"labels": LIVER},
        {"labels": {**LIVER, "lesion": [3, 2]}},
        "labels",
        "",
    ),
    "fewer labels": (
        {"labels": {"background": 0, "kidney": 1, "tumour": 2}},
        {"labels": {"background": 0, "kidney": 1}},
        "labels",
        "",
    ),
    "a field of nobody's": ({"spacing_unit": "mm"}, {"spacing_unit": "pixel"}, "spacing_unit", ""),
}


@pytest.mark.parametrize(("one", "other", "field", "hint"), OTHER.values(), ids=OTHER)
def test_what_differs_is_named(
    one: dict[str, Any], other: dict[str, Any], field: str, hint: str
) -> None:
    difference = find_difference(one, other)

    assert difference is not None
    assert difference.field == field
    assert hint in difference.hint
    assert bool(hint) == bool(difference.hint)


@pytest.mark.parametrize("content", [{"labels": 7}, {"channel_names": ["CT"]}, {"labels": None}])
def test_what_is_no_declaration_is_compared_as_it_is(content: dict[str, Any]) -> None:
    assert find_difference(content, content) is None
    assert find_difference({"labels": PLAIN, "channel_names": PET_CT}, content) is not None


GOOD = {"channel_names": {"0": "MR"}, "labels": PLAIN, "file_ending": ".nrrd"}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no channels": ({"channel_names": None}, "channel_names None: give a name to each channel"),
    "a list": ({"channel_names": ["MR"]}, r"channel_names \['MR'\]: give a name to each"),
    "two keys that differ": ({"modality": {"0": "CT"}}, "modality .* and channel_names .* differ"),
    "a channel twice": ({"channel_names": {"0": "a", "0000": "b"}}, "name a channel twice"),
    "no labels": ({"labels": {}}, "give a number to each label"),
    "v1": ({"labels": {"0": "background", "1": "kidney"}}, "other way round, as in nnU-Net v1"),
    "no background": ({"labels": {"kidney": 1}}, "Background label not declared"),
    "background 1": ({"labels": {"background": 1, "a": 2}}, "Background label must be 0"),
    "a gap": ({"labels": {"background": 0, "kidney": 1, "cyst": 4}}, "none left out"),
    "ignore amid": ({"labels": {"background": 0, "ignore": 1, "a": 2}}, "highest label value"),
    "no order": ({"labels": LIVER}, "you need to define regions_class_order"),
    "order too short": (
        {"labels": LIVER, "regions_class_order": [1, 2]},
        "regions_class_order must have as many entries",
    ),
    "text in regions": (
        {"labels": {"background": 0, "a": ["1", "2"], "b": 2}, "regions_class_order": [1, 2]},
        "numbers in quotation marks",
    ),
    "no file ending": ({"file_ending": None}, "has no file_ending"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_what_nnunet_cannot_read_is_told_in_a_line(changes: dict[str, Any], message: str) -> None:
    check_declaration(GOOD)
    check_declaration({**GOOD, "labels": LIVER, "regions_class_order": [1, 2, 3]})

    with pytest.raises(SettingsError, match=message) as refused:
        check_declaration({**GOOD, **changes})
    assert "\n" not in str(refused.value)
