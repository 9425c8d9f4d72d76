"""References for the test of a classifier in a comparison."""

from __future__ import annotations

import pytest
from cls_dataset import Folders

from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.tester import ClsTester


def test_a_comparison_refuses_labels_of_other_classes(folders: Folders) -> None:
    assert ClsTester().references(folders.raw, folders.dataset_json, "Tr", ["q"]) == {"q": 1}
    folders.write({"p": 1, "q": 0, "r": 0}, {"melanoma": 0, "naevus": 1})

    with pytest.raises(ClsError, match="are melanoma, naevus in nnUNet_raw and naevus, melanoma"):
        ClsTester().references(folders.raw, folders.dataset_json, "Tr", ["q"])
