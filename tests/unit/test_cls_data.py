"""Labels, classes, folds, patients and images of a classification dataset agree, or it is said."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image

from nnunetv2_cls.checks import check_dimensions, labelled_tests, x_is_left_right
from nnunetv2_cls.conversion.source import Case
from nnunetv2_cls.conversion.splits import draw_folds as convert_folds
from nnunetv2_cls.errors import ClsError
from nnunetv2_cls.inputs import find_inputs
from nnunetv2_cls.labels import (
    find_name,
    labels_to_plan,
    preprocessed_labels,
    read_test_labels,
    write_labels,
)
from nnunetv2_cls.preprocess import Expected, check_images, raw_cases
from nnunetv2_cls.splits import (
    check_fold,
    check_own_folds,
    draw_folds,
    group_numbers,
    patients_of,
    splits_to_plan,
    unused_cases,
)
from nnunetv2_cls.tester import ClsTester

NAME = "Dataset777_Skin"
CLASSES = {"naevus": 0, "melanoma": 1}
PLANS = {
    "dataset_name": NAME,
    "image_reader_writer": "NaturalImage2DIO",
    "transpose_forward": [0, 1, 2],
    "configurations": {"2d_cls": {"patch_size": [8, 8], "architecture": {}}},
}


class Folders:
    """A dataset in nnUNet_raw and nnUNet_preprocessed, as far as its labels go."""

    def __init__(self, base: Path) -> None:
        self.raw, self.preprocessed = (base / part / NAME for part in ("raw", "preprocessed"))
        for folder in (self.raw, self.preprocessed):
            folder.mkdir(parents=True)
        self.write({"p": 0, "q": 1, "r": 1})
        self.replan()

    def write(self, labels: dict[str, int], classes: dict[str, int] = CLASSES) -> None:
        (self.raw / "labelsTr.json").write_text(json.dumps(labels))
        (self.raw / "dataset.json").write_text(
            json.dumps({"classes": classes, "file_ending": ".png", "channel_names": {"0": "grey"}})
        )

    def replan(self) -> None:
        """Do what nnU-Net's planning does to ``dataset.json``."""
        (self.preprocessed / "dataset.json").write_bytes((self.raw / "dataset.json").read_bytes())

    def plan(self) -> None:
        write_labels(NAME, labels_to_plan(NAME))

    @property
    def dataset_json(self) -> dict:
        return json.loads((self.preprocessed / "dataset.json").read_text())

    def trained(self) -> dict[str, str]:
        """Class names as a training sees them."""
        return preprocessed_labels(NAME, self.dataset_json).names


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    for part in ("raw", "preprocessed"):
        monkeypatch.setenv(f"nnUNet_{part}", str(tmp_path / part))
    return Folders(tmp_path)


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


def test_a_comparison_refuses_labels_of_other_classes(folders: Folders) -> None:
    assert ClsTester().references(folders.raw, folders.dataset_json, "Tr", ["q"]) == {"q": 1}
    folders.write({"p": 1, "q": 0, "r": 0}, {"melanoma": 0, "naevus": 1})

    with pytest.raises(ClsError, match="are melanoma, naevus in nnUNet_raw and naevus, melanoma"):
        ClsTester().references(folders.raw, folders.dataset_json, "Tr", ["q"])


# folds


def test_folds_keep_patients_together_and_classes_in_proportion() -> None:
    classes = {f"c{i:02d}": "ill" if i % 3 == 0 else "well" for i in range(60)}
    patients = {case: str(int(case[1:]) // 2) for case in classes}

    folds = draw_folds(classes, patients)

    assert len(folds) == 5
    assert sorted(case for fold in folds for case in fold["val"]) == sorted(classes)
    for fold in folds:
        assert not {patients[c] for c in fold["train"]} & {patients[c] for c in fold["val"]}
        assert abs(Counter(classes[c] for c in fold["val"])["ill"] - 4) <= 1


def test_folds_are_those_of_a_conversion() -> None:
    classes = {f"c{i:02d}": "ab"[i % 2] for i in range(40)}
    patients = {case: f"p{int(case[1:]) // 3}" for case in classes}
    cases = [
        Case(name, patients[name], klass, Path(name), lambda: np.zeros((1, 1), np.uint8))
        for name, klass in classes.items()
    ]

    assert draw_folds(classes, patients) == convert_folds(cases)


def test_a_site_of_few_patients_gets_fewer_folds() -> None:
    classes = dict.fromkeys("abcdef", "one class")

    assert len(draw_folds(classes, dict(zip("abcdef", "112233", strict=True)))) == 3
    assert draw_folds(classes, dict.fromkeys("abcdef", "1")) == []
    assert draw_folds({}, {}) == []


def test_planning_draws_folds_by_patient_once(folders: Folders) -> None:
    classes = {f"c{i:02d}": "ab"[i % 2] for i in range(20)}
    rows = "".join(f"{case},{int(case[1:]) // 2}\n" for case in classes)
    (folders.raw / "cases.csv").write_text("case,patient\n" + rows)
    patients = patients_of(NAME)

    splits, said = splits_to_plan(folders.preprocessed, classes, patients)
    assert said == "drew 5 folds by patient and class (10 patients)"
    (folders.preprocessed / "splits_final.json").write_text(json.dumps(splits))
    assert splits_to_plan(folders.preprocessed, classes, patients) == (None, "")


def test_planning_leaves_the_folds_to_nnunet_where_no_patient_is_known(folders: Folders) -> None:
    splits, said = splits_to_plan(folders.preprocessed, dict.fromkeys("pqrstu", "a"), {})

    assert splits is None
    assert "nnU-Net will draw folds by image" in said


def test_planning_takes_the_folds_of_the_raw_dataset(folders: Folders) -> None:
    own = [{"train": ["p", "q"], "val": ["r"]}]
    (folders.raw / "splits_final.json").write_text(json.dumps(own))

    splits, said = splits_to_plan(folders.preprocessed, {**dict.fromkeys("pqrs", "a")}, {})

    assert splits == own
    assert "1 of 4 cases are in no fold" in said
    assert unused_cases(own, "pqrs", 0) == {"s"}


def test_a_table_without_patients_says_nothing(folders: Folders) -> None:
    assert patients_of(NAME) == {}
    (folders.raw / "cases.csv").write_text("case,class\np,0\n")
    assert patients_of(NAME) == {}
    (folders.raw / "cases.csv").write_text("case,patient\np,1\nq,\n")
    assert patients_of(NAME) == {"p": "1"}
    (folders.raw / "cases.csv").write_text("case,patient\np,1\np,2\n")
    with pytest.raises(ClsError, match="p has the patients 1 and 2"):
        patients_of(NAME)


@pytest.mark.parametrize("header", ["case,PatientID", "case,subject_id", "case;patient"])
def test_patients_under_another_name_are_not_passed_over(folders: Folders, header: str) -> None:
    (folders.raw / "cases.csv").write_text(f"{header}\np,1\n")
    with pytest.raises(ClsError, match=f"no column patient, but .*{header[-2:]}: name it patient"):
        patients_of(NAME)


def test_two_datasets_of_one_id_are_both_named(folders: Folders) -> None:
    number = NAME[7:10]
    assert find_name(number) == NAME
    (folders.raw.parent / f"Dataset{number}_Other").mkdir()
    with pytest.raises(ClsError, match=f"more than one has this id, .*Dataset{number}_Other"):
        find_name(number)


def test_patients_are_numbered_where_one_has_several_cases() -> None:
    assert group_numbers("abcd", {"a": "Smith", "c": "Smith", "b": "Wu"}) == [0, 1, 0, 2]
    assert group_numbers("abc", {"a": "1", "b": "2"}) is None


@pytest.mark.parametrize(
    ("fold", "cases", "patients", "message"),
    [
        (1, "abc", {}, "fold 1 does not exist: .* has the folds 0 to 0"),
        (-1, "abc", {}, "fold -1 does not exist"),
        (0, "ab", {}, r"names 1 cases that the dataset does not have \(c\) in fold 0"),
        (0, "abc", {"a": "x", "c": "x"}, r"has 1 patients in training and validation .*x with c"),
    ],
)
def test_a_fold_that_does_not_agree_is_refused(
    fold: int, cases: str, patients: dict[str, str], message: str
) -> None:
    with pytest.raises(ClsError, match=message):
        check_fold([{"train": ["a", "b"], "val": ["c"]}], fold, cases, patients, Path("splits"))


def test_a_case_on_both_sides_is_refused() -> None:
    with pytest.raises(ClsError, match=r"1 cases in training and validation of fold 0 \(b\)"):
        check_fold([{"train": ["a", "b"], "val": ["b"]}], 0, "ab", {}, Path("splits"))


def test_nnunet_draws_no_folds_that_split_a_patient() -> None:
    check_own_folds(4, "abcdef", {"a": "1", "b": "2"}, NAME)
    with pytest.raises(ClsError, match=r"1 patients have several images \(1\): nnU-Net would draw"):
        check_own_folds(0, "abcdef", {"a": "1", "b": "1"}, NAME)
    with pytest.raises(ClsError, match="fold 5 of 6 cases does not exist"):
        check_own_folds(5, "abcdef", {}, NAME)


# images


def save(path: Path, *shape: int) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.zeros(shape, np.uint8)).save(path)


def test_test_images_and_their_labels_agree_before_training(
    folders: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    def tests() -> tuple[dict[str, int], dict[str, list[str]]]:
        return labelled_tests(PLANS, "2d_cls", folders.dataset_json, ("naevus", "melanoma"))

    images = folders.raw / "imagesTs"
    assert tests() == ({}, {})
    (folders.raw / "labelsTs.json").write_text('{"t": 1, "u": 0}')
    with pytest.raises(ClsError, match=r"labelsTs\.json of .* has 2 cases without image \(t, u\)"):
        tests()
    save(images / "t_0000.png", 8, 8)
    save(images / "u.png", 8, 8)
    with pytest.raises(ClsError, match=r"1 cases without image \(u\): a case X is imagesTs/X_0000"):
        tests()
    save(images / "u_0000.png", 8, 8, 3)
    with pytest.raises(ClsError, match=r"1 images have 3 channels in 1 files, not 1 \(u\)"):
        tests()
    (images / "u_0000.png").unlink()
    (images / "u_0000.png").write_text("no image")
    with pytest.raises(ClsError, match=r"1 cannot be read \(u\)"):
        tests()
    (images / "u_0000.png").unlink()
    save(images / "u_0000.png", 8, 8)

    labels, files = tests()

    assert labels == {"t": 1, "u": 0}
    assert files["u"] == [str(images / "u_0000.png")]
    assert "1 of 3 files in" in caplog.text
    assert "(u.png): they are not judged" in caplog.text


def test_images_that_a_configuration_does_not_take_are_named(tmp_path: Path) -> None:
    shapes = {"flat": (8, 8), "slice": (1, 8, 8), "volume": (4, 8, 8), "series": (2, 4, 8, 8)}
    for name, shape in shapes.items():
        image = sitk.GetImageFromArray(np.zeros(shape, np.uint8), isVector=False)
        sitk.WriteImage(image, str(tmp_path / f"{name}_0000.nii.gz"))
    cases = raw_cases(tmp_path, ".nii.gz")
    assert set(cases) == set(shapes)

    def wrong(*, flat: bool) -> str:
        with pytest.raises(ClsError) as error:
            check_images(cases, Expected(1, flat, "SimpleITKIO", (0, 1, 2)), "-i in")
        return str(error.value)

    assert "1 images have 4 slices, of which a 2D configuration sees one (volume)" in wrong(
        flat=True
    )
    assert "1 images have 2 channels in 1 files, not 1 (series)" in wrong(flat=True)
    assert "1 images are 2D, the configuration takes volumes (flat)" in wrong(flat=False)
    assert "(volume" not in wrong(flat=False)


GREY, COLOUR = (Expected(n, True, "NaturalImage2DIO", (0, 1, 2)) for n in (1, 3))


def save_dicom(path: Path) -> None:
    image = sitk.GetImageFromArray(np.full((1, 8, 8), 300, np.uint16))
    sitk.WriteImage(image, str(path.with_suffix(".dcm")))
    path.with_suffix(".dcm").rename(path)


def test_prediction_takes_images_of_any_kind_and_name(tmp_path: Path) -> None:
    save(tmp_path / "a_0000.png", 8, 8)
    save(tmp_path / "scan_0001.png", 8, 8)  # a person's number, no channel
    save(tmp_path / "scan_0002.png", 8, 8)
    save(tmp_path / "photo.JPG", 8, 8)
    save(tmp_path / "screenshot.png", 8, 8, 3)  # colour by its form only
    save_dicom(tmp_path / "1.2.840.99")
    (tmp_path / "torn.png").write_text("no image")
    (tmp_path / ".DS_Store").write_text("")

    found = find_inputs(tmp_path, ".png", GREY)

    assert set(found.files) == {
        "a", "scan_0001", "scan_0002", "photo", "screenshot", "1.2.840.99"
    }  # fmt: skip
    assert found.converted == set(found.files) - {"a"}
    assert set(found.unreadable) == {"torn"}


def test_a_colour_model_takes_one_file_or_three(tmp_path: Path) -> None:
    Image.fromarray(np.eye(24, dtype=np.uint8).reshape(8, 24, 3) * 9).save(tmp_path / "one.png")
    for channel in range(3):
        save(tmp_path / f"three_{channel:04d}.png", 8, 8)

    found = find_inputs(tmp_path, ".png", COLOUR)

    assert {case: len(files) for case, files in found.files.items()} == {"one": 1, "three": 3}
    assert found.converted == {"one"}


def test_images_that_a_model_does_not_take_are_named_before_predicting(tmp_path: Path) -> None:
    with pytest.raises(ClsError, match="is no folder"):
        find_inputs(tmp_path / "none", ".png", GREY)
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 9
    Image.fromarray(red).save(tmp_path / "red.png")
    with pytest.raises(ClsError, match=r"1 files have 3 channels, not 1 \(red.png\)"):
        find_inputs(tmp_path, ".png", GREY)
    Image.fromarray(red).save(tmp_path / "red.bmp")
    with pytest.raises(ClsError, match=r"red\.bmp and .*red\.png would both be case red"):
        find_inputs(tmp_path, ".png", COLOUR)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ClsError, match=r"notes\.txt is no image"):
        find_inputs(tmp_path, ".png", COLOUR)


def test_a_model_of_volumes_takes_volumes_without_suffix(tmp_path: Path) -> None:
    def volume(name: str, *shape: int) -> None:
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros(shape, np.uint8)), str(tmp_path / name))

    volume("left.nii.gz", 4, 8, 8)
    volume("right_0000.nii.gz", 4, 8, 8)
    one, two = (Expected(n, False, "SimpleITKIO", (0, 1, 2)) for n in (1, 2))

    assert set(find_inputs(tmp_path, ".nii.gz", one).files) == {"left", "right"}
    with pytest.raises(ClsError, match=r"2 files have 1 channels in 1 files, not 2 \(a case of s"):
        find_inputs(tmp_path, ".nii.gz", two)
    volume("flat.nii.gz", 8, 8)
    save(tmp_path / "photo.png", 8, 8)
    with pytest.raises(ClsError, match=r"are 2D.* \(flat.nii.gz\); 1 files are not \.nii\.gz"):
        find_inputs(tmp_path, ".nii.gz", one)


def volumes_plans(slices: float) -> dict:
    return {
        **PLANS,
        "original_median_shape_after_transp": [slices, 64, 64],
        "transpose_forward": [2, 0, 1],
    }


def test_a_2d_configuration_of_volumes_is_refused(folders: Folders) -> None:
    check_dimensions(volumes_plans(1), "2d_cls")
    with pytest.raises(ClsError, match=r"volumes \(up to 30 slices\).* -c 3d_fullres"):
        check_dimensions(volumes_plans(30), "2d_cls")
    # one volume among many images; the slices are along the file's last axis
    (folders.preprocessed / "dataset_fingerprint.json").write_text(
        json.dumps({"shapes_after_crop": [[64, 64, 1], [64, 64, 1], [60, 60, 12]]})
    )
    with pytest.raises(ClsError, match=r"volumes \(up to 12 slices\)"):
        check_dimensions(volumes_plans(1), "2d_cls")


@pytest.mark.parametrize(
    ("direction", "expected"),
    [
        ((1, 0, 0, 0, 1, 0, 0, 0, 1), True),
        ((-0.9, 0.4, 0, 0.4, 0.9, 0, 0, 0, 1), True),  # from right to left, and oblique
        ((0, 0, 1, 1, 0, 0, 0, -1, 0), False),  # sagittal: the file's x runs from front to back
        ((1, 0, 0, 1), True),  # of a 2D file: not told
    ],
)
def test_left_and_right_of_a_volume(direction: tuple[float, ...], *, expected: bool) -> None:
    assert x_is_left_right({"sitk_stuff": {"direction": direction}}) is expected
