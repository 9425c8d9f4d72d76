"""A dataset that does not agree with itself is told before anything is trained."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import blosc2
import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from skimage import io

from nnunetv2_federated.cli.check import main as check_main
from nnunetv2_federated.cli.train import main as train_main
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.nnunet.data.dataset import load_dataset
from nnunetv2_federated.nnunet.data.folds import draw_folds, fold_split
from nnunetv2_federated.nnunet.data.integrity import check_dataset

NAME = "Dataset901_Balls"


class Folders:
    """A dataset's own raw and preprocessed folders, free to be spoiled."""

    def __init__(self, base: Path) -> None:
        self.raw = base / "raw" / NAME
        self.preprocessed = base / "preprocessed" / NAME

    @property
    def images(self) -> Path:
        return self.preprocessed / "nnUNetPlans_2d"

    @property
    def splits(self) -> Path:
        return self.preprocessed / "splits_final.json"

    def change_splits(self, change: Callable[[list[dict[str, list[str]]]], None]) -> None:
        splits = json.loads(self.splits.read_text())
        change(splits)
        self.splits.write_text(json.dumps(splits))

    def declare(self, **changes: object) -> None:
        file = self.raw / "dataset.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    def write_patients(self, patients: dict[str, str]) -> None:
        rows = "".join(f"{case},{patient}\n" for case, patient in patients.items())
        (self.raw / "cases.csv").write_text("case,patient\n" + rows)


@pytest.fixture
def folders(
    dataset_2d: str, nnunet_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Folders:
    fold_split(load_dataset(dataset_2d), "2d", 0)
    for name in ("raw", "preprocessed"):
        shutil.copytree(nnunet_folders / name / NAME, tmp_path / name / NAME)
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    return Folders(tmp_path)


def check(**options: bool) -> list[str]:
    return check_dataset(load_dataset("901"), "2d", [0], **options)


def fold_0(folders: Folders) -> dict[str, list[str]]:
    return json.loads(folders.splits.read_text())[0]


def lose_case(folders: Folders) -> str:
    case = fold_0(folders)["train"][0]
    (folders.images / f"{case}.b2nd").unlink()
    return f"names 1 case ({case}) in fold 0 that is not preprocessed for 2d: preprocess again"


def train_on_validation(folders: Folders) -> str:
    case = fold_0(folders)["val"][1]
    folders.change_splits(lambda splits: splits[0]["train"].append(case))
    return f"has 1 case ({case}) in training and in validation of fold 0"


def write_other_splits(folders: Folders) -> str:
    folders.splits.write_text('{"train": ["case_01"], "val": ["case_02"]}')
    return "splits_final.json: expected nnU-Net's list of"


def damage_image(folders: Folders) -> str:
    case = fold_0(folders)["train"][2]
    (folders.images / f"{case}.b2nd").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    return f"{case} of {NAME} cannot be read"


def damage_properties(folders: Folders) -> str:
    case = fold_0(folders)["val"][0]
    (folders.images / f"{case}.pkl").write_bytes(b"")
    return f"{case}.pkl cannot be read (EOFError: Ran out of input): preprocess again"


def add_channel(folders: Folders) -> str:
    case = fold_0(folders)["train"][1]
    file = folders.images / f"{case}.b2nd"
    image = blosc2.open(str(file))[:]
    file.unlink()
    blosc2.asarray(np.concatenate([image, image]), urlpath=str(file))
    return f"{case} of {NAME} has 2 channels preprocessed, dataset.json names 1"


def resize_segmentation(folders: Folders) -> str:
    case = fold_0(folders)["train"][1]
    file = folders.images / f"{case}_seg.b2nd"
    segmentation = blosc2.open(str(file))[:]
    file.unlink()
    blosc2.asarray(np.ascontiguousarray(segmentation[..., :-1]), urlpath=str(file))
    return f"{case} of {NAME} is preprocessed with an image of shape"


def lose_reference(folders: Folders) -> str:
    case = fold_0(folders)["val"][0]
    (folders.preprocessed / "gt_segmentations" / f"{case}.png").unlink()
    return f"1 case ({case}) of {NAME} to validate without segmentation in gt_segmentations"


def correct_label(folders: Folders) -> str:
    file = folders.raw / "labelsTr" / "case_05.png"
    io.imsave(str(file), 2 - io.imread(str(file)), check_contrast=False)
    os.utime(file, (0, 0))  # as old as a copy of a backup: nnU-Net copies what is newer
    return f"the segmentation of 1 case (case_05) of {NAME} in nnUNet_raw is not the one"


def rename_classes(folders: Folders) -> str:
    folders.declare(labels={"background": 0, "two": 1, "one": 2})
    return f"labels of {NAME} is {{'background': 0, 'two': 1, 'one': 2}} in nnUNet_raw and was"


def rename_channel(folders: Folders) -> str:
    folders.declare(channel_names={"0": "CT"})
    return f"channel_names of {NAME} is {{'0': 'CT'}} in nnUNet_raw and was {{'0': 'image'}}"


def mix_patients(folders: Folders) -> str:
    fold = fold_0(folders)
    patients = {case: case for part in fold.values() for case in part}
    one, other = fold["train"][0], fold["val"][0]
    folders.write_patients(patients | {one: "P7", other: "P7"})
    names = ", ".join(sorted((one, other)))
    return f"2 cases ({names}) of {NAME} are of 1 patients who are in training and in validation"


def forget_patient_column(folders: Folders) -> str:
    (folders.raw / "cases.csv").write_text("id;patient\ncase_00;1\n")
    return "has no column 'case'"


def name_patients_otherwise(folders: Folders) -> str:
    folders.splits.unlink()
    (folders.raw / "cases.csv").write_text("case,PatientID\ncase_00,1\n")
    return "has no column patient, but PatientID: name it patient to have folds drawn by patient"


def name_a_case_twice(folders: Folders) -> str:
    case = fold_0(folders)["train"][0]
    folders.change_splits(lambda splits: splits[0]["train"].append(case))
    return f"has 1 case ({case}) more than once in a part of fold 0"


def draw_an_undeclared_label(folders: Folders) -> str:
    case = fold_0(folders)["train"][3]
    file = folders.images / f"{case}_seg.b2nd"
    segmentation = blosc2.open(str(file))[:]
    file.unlink()
    segmentation[0, 0, 5, 5] = 7
    blosc2.asarray(segmentation, urlpath=str(file))
    return f"{case} of {NAME} has the label 7, dataset.json declares 0 to 2"


def renumber_a_channel(folders: Folders) -> str:
    image = folders.raw / "imagesTr" / "case_08_0000.png"
    image.rename(image.with_name("case_08_0001.png"))
    return f"1 case (case_08) of {NAME} in nnUNet_raw with channels that are not numbered 0000"


def write_a_list_for_plans(folders: Folders) -> str:
    (folders.preprocessed / "nnUNetPlans.json").write_text("[]")
    return "is of another form than nnU-Net's plans: it lacks configurations"


def change_plans(folders: Folders, change: Callable[[dict], None]) -> None:
    file = folders.preprocessed / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    change(plans)
    file.write_text(json.dumps(plans))


def lose_part_of_plans(folders: Folders) -> str:
    change_plans(folders, lambda plans: plans.pop("transpose_forward"))
    return "is of another form than nnU-Net's plans: it lacks transpose_forward"


def empty_configuration(folders: Folders) -> str:
    change_plans(folders, lambda plans: plans["configurations"].update({"2d": {}}))
    return f"configuration 2d in the plans of {NAME} cannot be used (KeyError"


def lengthen_patch(folders: Folders) -> str:
    change_plans(folders, lambda plans: plans["configurations"]["2d"]["patch_size"].append(8))
    return f"configuration 2d in the plans of {NAME} has the patch size [32, 32, 8]"


def lose_raw_label(folders: Folders) -> str:
    (folders.raw / "labelsTr" / "case_06.png").unlink()
    return f"1 case (case_06) of {NAME} in nnUNet_raw without segmentation: restore it"


def damage_raw_declaration(folders: Folders) -> str:
    (folders.raw / "dataset.json").write_text("[1]")
    return "dataset.json: give an object with channel_names, labels and file_ending"


SPOILED = [
    *(lose_case, train_on_validation, write_other_splits, damage_image, damage_properties),
    *(add_channel, resize_segmentation, lose_reference, correct_label, rename_classes),
    *(rename_channel, mix_patients, forget_patient_column, name_patients_otherwise),
    *(name_a_case_twice, draw_an_undeclared_label, renumber_a_channel, write_a_list_for_plans),
    *(lose_part_of_plans, empty_configuration, lengthen_patch, lose_raw_label),
    damage_raw_declaration,
]


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
def test_it_is_one_line_and_an_earlier_run_stays(
    folders: Folders, tmp_path: Path, spoil: Callable[[Folders], str], capsys
) -> None:
    fold = f"{NAME}/nnUNetTrainerFederated__nnUNetPlans__2d/fold_0"
    earlier = tmp_path / "results" / fold / "federation"
    earlier.mkdir(parents=True)
    (earlier / "run.json").write_text("an earlier run")
    expected = spoil(folders)

    with pytest.raises(SystemExit) as exit_:
        train_main(["901", "2d", "0", "--sites", "2", "-device", "cpu"])

    error = capsys.readouterr().err.strip()
    assert exit_.value.code == 2
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert expected in error
    assert [path.name for path in earlier.parent.iterdir()] == ["federation"]
    assert (earlier / "run.json").read_text() == "an earlier run"


def test_the_command_shows_every_fold_and_configuration_and_what_is_wrong(
    folders: Folders, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    check_main(["901"])
    shown = capsys.readouterr().out
    assert "NO" not in shown
    for fold in range(5):
        assert f"validation cases of fold {fold}" in " ".join(shown.split())

    lost = json.loads(folders.splits.read_text())[3]["val"][0]
    (folders.preprocessed / "gt_segmentations" / f"{lost}.png").unlink()
    check_main(["901", "2d", "0"])
    with pytest.raises(SystemExit) as exit_:
        check_main(["901"])
    found = capsys.readouterr()
    assert exit_.value.code == 2
    assert found.err == f"error: {NAME} does not agree with itself: references\n"
    assert f"1 case ({lost}) of {NAME} to validate" in " ".join(found.out.split())


@pytest.mark.parametrize("spoil", [lose_raw_label, damage_raw_declaration])
def test_the_command_names_what_is_wrong_with_raw_files(
    folders: Folders, spoil: Callable[[Folders], str], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    expected = spoil(folders)
    with pytest.raises(SystemExit, match="2"):
        check_main(["901"])
    assert expected in capsys.readouterr().out


def test_every_segmentation_is_read_once_whatever_the_number_of_folds(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    load = nnUNetDatasetBlosc2.load_case

    def counted(self: nnUNetDatasetBlosc2, case: str) -> object:
        read.append(case)
        return load(self, case)

    monkeypatch.setattr(nnUNetDatasetBlosc2, "load_case", counted)
    check_dataset(load_dataset("901"), "2d", range(5))
    assert read == CASES
    lost = json.loads(folders.splits.read_text())[4]["val"][0]
    (folders.preprocessed / "gt_segmentations" / f"{lost}.png").unlink()
    with pytest.raises(SettingsError, match=f"{lost}.* to validate without segmentation"):
        check_dataset(load_dataset("901"), "2d", range(5))


def test_the_command_takes_a_site_too_small_for_folds(folders: Folders, capsys) -> None:
    folders.splits.unlink()
    for file in folders.images.iterdir():
        if int(file.name[5:7]) > 2:
            file.unlink()
    check_main(["901"])
    assert "3 training, 0 validation" in " ".join(capsys.readouterr().out.split())


def test_what_is_odd_but_no_error_is_said_aloud(folders: Folders) -> None:
    assert check() == []
    folders.change_splits(lambda splits: [split["train"].clear() for split in splits[1:]])
    folders.change_splits(lambda splits: [split["val"].clear() for split in splits[1:]])
    first = fold_0(folders)["train"].pop(0)
    folders.change_splits(lambda splits: splits[0]["train"].remove(first))
    newer = folders.raw / "imagesTr" / "case_03_0000.png"
    os.utime(newer, (time.time() + 60, time.time() + 60))
    (folders.raw / "imagesTr" / "case_04_0000.png").unlink()
    (folders.raw / "labelsTr" / "case_04.png").unlink()
    (folders.raw / "imagesTr" / "case_02_0000.png").unlink()

    assert check() == [
        f"1 case ({first}) of {NAME} in no fold of splits_final.json: never trained on",
        f"2 cases (case_02, case_04) of {NAME} preprocessed, but not in nnUNet_raw any more",
        f"1 case (case_02) of {NAME} segmented in nnUNet_raw, but without image",
        f"1 case (case_03) of {NAME} older than the file in nnUNet_raw it was preprocessed from",
    ]


def test_a_column_that_seems_to_hold_patients_is_named(folders: Folders) -> None:
    (folders.raw / "cases.csv").write_text("case,site,Subject_ID\ncase_00,a,1\n")
    assert check() == [
        f"patients of {NAME} are not known: cases.csv has no column patient, but Subject_ID; name "
        "it patient to keep a patient's cases in one fold"
    ]
    (folders.raw / "cases.csv").write_text("case,site\ncase_00,a\n")
    assert check() == []


def test_a_classifier_needs_no_reference_segmentations(folders: Folders) -> None:
    shutil.rmtree(folders.preprocessed / "gt_segmentations")
    assert check(segmentation=False) == []


def test_without_raw_data_there_is_nothing_to_compare(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    correct_label(folders)
    monkeypatch.delenv("nnUNet_raw")
    assert check() == []


# Folds by patient

CASES = [f"case_{index:02d}" for index in range(12)]


def test_folds_of_patients_with_a_case_each_are_those_of_nnunet(folders: Folders) -> None:
    """What nnU-Net 2.8.1 draws of twelve cases, from its own ``splits_final.json``."""
    nnunet = json.loads(folders.splits.read_text())
    assert [split["val"] for split in nnunet] == [
        ["case_00", "case_03", "case_08"],
        ["case_07", "case_10", "case_11"],
        ["case_06", "case_09"],
        ["case_01", "case_04"],
        ["case_02", "case_05"],
    ]
    assert draw_folds(CASES, None) == nnunet
    assert draw_folds(CASES, {case: f"P{case}" for case in CASES}) == nnunet


def test_the_cases_of_a_patient_are_in_one_fold_and_folds_of_like_size() -> None:
    patients = {case: f"P{index // 2}" for index, case in enumerate(CASES)}
    splits = draw_folds(CASES, patients)

    assert sorted(case for split in splits for case in split["val"]) == CASES
    assert sorted(len(split["val"]) for split in splits) == [2, 2, 2, 2, 4]
    for split in splits:
        assert sorted(split["train"] + split["val"]) == CASES
        assert not {patients[c] for c in split["train"]} & {patients[c] for c in split["val"]}


@pytest.mark.parametrize(
    ("patients", "message"),
    [
        (dict.fromkeys(CASES, "P0"), "has cases of 1 patients, five folds by patient need"),
        ({case: case for case in CASES[1:]}, r"has no patient for 1 case \(case_00\)"),
        (dict.fromkeys(CASES, ""), "has no patient for 12 cases"),
    ],
)
def test_folds_by_patient_that_cannot_be(patients: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_folds(CASES, patients)


@pytest.mark.parametrize("named", [False, True], ids=["cases.csv", "--case-table"])
def test_folds_are_drawn_by_the_patients_of_the_case_table(
    folders: Folders, tmp_path: Path, named: bool
) -> None:
    folders.splits.unlink()
    patients = {case: f"P{index // 2}" for index, case in enumerate(CASES)}
    folders.write_patients(patients)
    table = folders.raw / "cases.csv"
    flags: list[str] = []
    if named:
        flags = ["--case-table", str(table.rename(tmp_path / "elsewhere.csv"))]
    short = ["--rounds", "1", "--sites", "2", "--partition", "iid", "--prepare-only"]
    train_main(["901", "2d", "1", *short, *flags, "-device", "cpu"])

    assert json.loads(folders.splits.read_text()) == draw_folds(CASES, patients)
    (file,) = (tmp_path / "results").glob("*/*/fold_1/federation/run.json")
    run = json.loads(file.read_text())
    for patient in set(patients.values()):  # nor over sites
        own = {case for case in CASES if patients[case] == patient}
        at = [s for s in run["sites"] if own & {*s["training_cases"], *s["validation_cases"]}]
        assert len(at) == 1


def test_a_table_that_lacks_a_patient_is_refused_before_folds_are_drawn(folders: Folders) -> None:
    folders.splits.unlink()
    folders.write_patients({case: case for case in CASES[:-1]})
    with pytest.raises(SettingsError, match=r"has no patient for 1 case \(case_11\); use fold all"):
        fold_split(load_dataset("901"), "2d", 0)
    assert not folders.splits.exists()
