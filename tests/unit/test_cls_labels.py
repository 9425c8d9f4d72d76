"""Labels and classes in nnUNet_raw and nnUNet_preprocessed agree, or are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cls_dataset import NAME, Folders

from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.labels import (
    ImageLabels,
    find_name,
    preprocessed_labels,
    read_classes,
    read_labels,
    read_test_labels,
)


@pytest.mark.parametrize(
    "classes", [None, {}, {"a": 0}, {"a": 0, "b": 2}, {"a": 1, "b": 1}, ["a", "b"]]
)
def test_bad_classes_are_refused(classes: object) -> None:
    with pytest.raises(ClsError, match=r"classes in dataset\.json"):
        read_classes({"classes": classes})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "cannot be read"),
        ("[]", "expected"),
        ('{"x": 2}', "x has the class 2"),
        ('{"x": "a"}', "x has the class 'a'"),
        ('{"x": true}', "x has the class True"),
    ],
)
def test_bad_labels_are_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "labelsTr.json"
    path.write_text(content)
    with pytest.raises(ClsError, match=message):
        read_labels(path, ("a", "b"))


def test_labels_and_images_must_match() -> None:
    labels = ImageLabels(("a", "b"), json.loads('{"x": 0, "y": 1}'))

    labels.check(["x", "y"])
    with pytest.raises(ClsError, match=r"1 images without label \(z"):
        labels.check(["x", "y", "z"])
    with pytest.raises(ClsError, match=r"1 labels without image \(y"):
        labels.check(["x"])
    of_a_federation = ImageLabels(("a", "b", "c"), labels.of_case)
    of_a_federation.check(["x", "y"])  # another site has c
    assert of_a_federation.absent == ["c"]


def test_a_corrected_label_is_taken_by_planning_and_demanded_by_training(folders: Folders) -> None:
    folders.plan()
    folders.write({"p": 1, "q": 1, "r": 1})

    with pytest.raises(ClsError, match=r"1 labels of Dataset777.*\(p; p is melanoma there and nae"):
        folders.trained()
    folders.plan()
    assert folders.trained() == {"p": "melanoma", "q": "melanoma", "r": "melanoma"}


def test_renumbered_classes_keep_their_meaning(folders: Folders) -> None:
    folders.plan()
    folders.write({"p": 1, "q": 0, "r": 0}, {"melanoma": 0, "naevus": 1})
    folders.replan()

    assert folders.trained() == {"p": "naevus", "q": "melanoma", "r": "melanoma"}
    assert preprocessed_labels(NAME, folders.dataset_json).of_case == {"p": 1, "q": 0, "r": 0}


def test_classes_keep_the_order_in_which_raw_declares_them(folders: Folders) -> None:
    folders.write({"p": 0, "q": 1, "r": 1}, {"melanoma": 1, "other": 0})
    folders.plan()

    assert list(folders.dataset_json["classes"].items()) == [("melanoma", 1), ("other", 0)]


def test_renamed_classes_are_refused_until_planned_again(folders: Folders) -> None:
    folders.plan()
    folders.write({"p": 0, "q": 1, "r": 1}, {"benign": 0, "malignant": 1})

    with pytest.raises(ClsError, match="are benign, malignant in nnUNet_raw and naevus, melanoma"):
        folders.trained()
    folders.plan()
    assert folders.dataset_json["classes"] == {"benign": 0, "malignant": 1}
    assert folders.trained()["q"] == "malignant"


def test_a_copy_of_other_classes_is_refused_without_raw(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders.plan()
    monkeypatch.delenv("nnUNet_raw")
    assert folders.trained()["p"] == "naevus"
    (folders.preprocessed / "dataset.json").write_text('{"classes": {"x": 0, "naevus": 1}}')

    with pytest.raises(ClsError, match=r"has the classes melanoma, which are none of dataset\.jso"):
        folders.trained()


def test_a_copy_of_an_older_version_is_upgraded_by_planning(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copy = folders.preprocessed / "labelsTr.json"
    copy.write_bytes((folders.raw / "labelsTr.json").read_bytes())
    assert folders.trained()["p"] == "naevus"  # raw confirms it
    monkeypatch.delenv("nnUNet_raw")

    with pytest.raises(ClsError, match=r"has no class names.*run nnUNetv2_cls_plan Dataset777"):
        folders.trained()
    folders.plan()
    assert "its indices are taken as 0 naevus, 1 melanoma" in caplog.text
    assert json.loads(copy.read_text()) == {"p": "naevus", "q": "melanoma", "r": "melanoma"}


def test_a_copy_of_an_older_version_that_is_stale_is_refused(folders: Folders) -> None:
    (folders.preprocessed / "labelsTr.json").write_text('{"p": 0, "q": 0, "r": 1}')

    with pytest.raises(ClsError, match=r"1 labels of .* are others in"):
        folders.trained()


def test_test_labels_are_of_the_classes_that_are_trained(folders: Folders) -> None:
    (folders.raw / "labelsTs.json").write_text('{"t": 1}')
    assert read_test_labels(NAME, ("naevus", "melanoma")).names == {"t": "melanoma"}

    with pytest.raises(ClsError, match="are naevus, melanoma in nnUNet_raw and melanoma, naevus"):
        read_test_labels(NAME, ("melanoma", "naevus"))


def test_two_datasets_of_one_id_are_both_named(folders: Folders) -> None:
    number = NAME[7:10]
    assert find_name(number) == NAME
    (folders.raw.parent / f"Dataset{number}_Other").mkdir()
    with pytest.raises(ClsError, match=f"more than one has this id, .*Dataset{number}_Other"):
        find_name(number)
