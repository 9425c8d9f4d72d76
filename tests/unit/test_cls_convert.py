"""``nnUNetv2_cls_convert``, run as a user runs it but on tiny folders and archives."""

import csv
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import (
    get_normalization_scheme,
)
from PIL import Image

from nnunetv2_cls.cli.convert import main
from nnunetv2_cls.conversion.kermany import patient_of, read_kermany
from nnunetv2_cls.conversion.rsna import draw_boxes
from nnunetv2_cls.conversion.source import case_name
from nnunetv2_cls.conversion.writer import write_dataset
from nnunetv2_cls.errors import ClsError

MANIFEST = Path(__file__).parents[3] / "shared" / "data" / "kermany_cxr_manifest.csv"
SHAPE = (12, 10)
PATIENTS = [f"p{i}" for i in range(6)]


@pytest.fixture
def raw(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    return tmp_path / "raw"


def pixels(value, shape=SHAPE):
    image = np.full(shape, value, np.uint8)
    image[0, 0] = 0
    return image


def save(path, value=90, shape=SHAPE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(value, shape)).save(path)
    return path


def save_colour(path, red=50, alpha=False):
    """Red varies, green is 60 and blue 70."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.broadcast_to((red, 60, 70, 128)[: 4 if alpha else 3], (*SHAPE, 4 if alpha else 3))
    Image.fromarray(values.astype(np.uint8)).save(path)
    return path


def save_dicom(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f"{path.name}.dcm")
    sitk.WriteImage(sitk.GetImageFromArray(array), str(written))
    return written.rename(path)


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def convert(*arguments):
    main([str(argument) for argument in arguments])


def refuse(capsys, *arguments):
    """Run a command that must fail, and return its one line."""
    with pytest.raises(SystemExit, match=r"^2$"):
        convert(*arguments)
    line = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", line)
    return line


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def load(path):
    return json.loads(path.read_text())


def table(folder, images="imagesTr"):
    """Return the rows of ``cases.csv`` that are of these images."""
    cases = {path.name.rpartition("_")[0] for path in (folder / images).iterdir()}
    with (folder / "cases.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["case"] in cases]


def check_folds(folder, count=5):
    """Every case is validated once, and no patient is on both sides of a fold."""
    rows = table(folder)
    patients = {row["case"]: row["patient"] for row in rows}
    folds = load(folder / "splits_final.json")
    assert len(folds) == count
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == sorted(patients)
        assert fold["train"] == sorted(fold["train"])
        assert fold["val"] == sorted(fold["val"])
        assert not {patients[c] for c in fold["train"]} & {patients[c] for c in fold["val"]}
    if count == 5:
        assert sorted(case for fold in folds for case in fold["val"]) == sorted(patients)
        classes = {row["case"]: row["class"] for row in rows}
        assert all({classes[c] for c in fold["val"]} == set(classes.values()) for fold in folds)


# --- Kermany


@pytest.fixture
def kermany(tmp_path):
    """Six patients a class, one class with two images each, one image of them in val."""
    root = tmp_path / "kaggle" / "chest_xray"
    for i in range(1, 7):
        save(root / f"train/NORMAL/IM-{i:04d}-0001.jpeg", 80)
        save(root / f"train/PNEUMONIA/person{i}_bacteria_{i}.jpeg", 160)
    for i in range(2, 7):
        save(root / f"train/PNEUMONIA/person{i}_virus_100{i}.jpeg", 160)
    save(root / "train/NORMAL/NORMAL2-IM-0001-0001.jpeg", 80, (*SHAPE, 3))  # RGB, of grey content
    save(root / "val/NORMAL/NORMAL2-IM-0007-0001.jpeg", 80)
    save(root / "val/PNEUMONIA/person1_bacteria_9.jpeg", 160)
    save(root / "test/NORMAL/IM-0001-0001.jpeg", 80)
    save(root / "test/PNEUMONIA/person1_virus_6.jpeg", 160)
    (root / "train/NORMAL/.DS_Store").write_bytes(b"x")
    return root


def test_kermany(raw, kermany, capsys):
    convert("kermany", kermany.parent, 7)
    folder = raw / "Dataset007_KermanyCXR"
    assert names(raw) == [folder.name]
    assert names(folder) == [
        *("cases.csv", "dataset.json", "imagesTr", "imagesTs", "labelsTr", "labelsTr.json"),
        *("labelsTs.json", "splits_final.json"),
    ]
    content = load(folder / "dataset.json")
    assert content["channel_names"] == {"0": "XR"}
    assert content["labels"] == {"background": 0, "image": 1}
    assert content["numTraining"] == 20
    assert content["file_ending"] == ".png"
    assert content["classes"] == {"normal": 0, "pneumonia": 1}
    labels = load(folder / "labelsTr.json")
    assert Counter(labels.values()) == {0: 8, 1: 12}
    assert names(folder / "imagesTr") == [f"{case}_0000.png" for case in labels]
    assert names(folder / "labelsTr") == [f"{case}.png" for case in labels]
    assert load(folder / "labelsTs.json") == {"test_IM-0001-0001": 0, "test_person1_virus_6": 1}
    rows = {row["case"]: row for row in table(folder)}
    assert rows["val_person1_bacteria_9"]["patient"] == "trainval_person1"
    assert rows["train_person1_bacteria_1"]["patient"] == "trainval_person1"
    assert rows["train_NORMAL2-IM-0001-0001"]["class"] == "normal"
    assert "train_person2_virus-1002" in rows  # _1002 would look like a channel
    assert {case: content["classes"][row["class"]] for case, row in rows.items()} == labels
    check_folds(folder)
    tested = {row["case"]: row["patient"] for row in table(folder, "imagesTs")}
    assert tested == {"test_IM-0001-0001": "test_IM-0001", "test_person1_virus_6": "test_person1"}
    assert capsys.readouterr().out.splitlines() == [
        str(folder),
        "training: 8 normal, 12 pneumonia",
        "test: 1 normal, 1 pneumonia",
        "next:",
        "  nnUNetv2_plan_and_preprocess -d 7 -c 2d --verify_dataset_integrity",
        "  nnUNetv2_cls_plan 7",
    ]


def test_nnunet_reads_a_kermany_case(raw, kermany):
    convert("kermany", kermany, 7)
    folder = raw / "Dataset007_KermanyCXR"
    reader = NaturalImage2DIO()
    image, _ = reader.read_images([str(folder / "imagesTr/train_NORMAL2-IM-0001-0001_0000.png")])
    seg, _ = reader.read_seg(str(folder / "labelsTr/train_NORMAL2-IM-0001-0001.png"))
    assert image.shape == seg.shape == (1, 1, *SHAPE)
    assert (seg == 1).all()
    assert np.median(image) == pytest.approx(80, abs=1)


def test_kermany_size(raw, kermany):
    convert("kermany", kermany, 7, "--size", 8, "--name", "Small")
    folder = raw / "Dataset007_Small"
    assert load(folder / "dataset.json")["image_size"] == 8
    for path in (*(folder / "imagesTr").iterdir(), *(folder / "labelsTr").iterdir()):
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((8, 8), "L")


def test_val_of_kermany_may_be_absent(raw, kermany):
    shutil.rmtree(kermany / "val")
    convert("kermany", kermany, 7)
    assert len(table(raw / "Dataset007_KermanyCXR")) == 18


@pytest.mark.parametrize(
    ("stem", "split", "patient"),
    [
        ("person123_bacteria_456", "train", "trainval_person123"),
        ("person447_virus_921_1", "val", "trainval_person447"),
        ("IM-0115-0001", "test", "test_IM-0115"),
        ("NORMAL2-IM-1427-0001-0002", "train", "trainval_NORMAL2-IM-1427"),
        ("NORMAL2-IM-0035-0001", "train", "trainval_NORMAL2-IM-0035"),
        ("NORMAL2-IM-0035-0001", "test", "test_NORMAL2-IM-0035"),
        ("im-0467-0001-0002", "train", "trainval_IM-0467"),
        ("Person96_bacteria_465_jpeg.rf.1f0b2c", "train", "trainval_person96"),
        ("BACTERIA-58730-0004", "train", "patient58730"),
        ("VIRUS-58730-0001", "train", "patient58730"),  # the patient of the line above
        ("NORMAL-2203-0001", "test", "patient2203"),
        ("thorax7", "test", None),
        ("NORMAL-17", "train", None),  # a number of an image, in other collections
        ("personal_bacteria_3", "train", None),
    ],
)
def test_patient_of_kermany(stem, split, patient):
    assert patient_of(stem, split) == patient


@pytest.mark.realdata
def test_patients_of_the_real_kermany_files():
    if not MANIFEST.is_file():
        pytest.skip(f"{MANIFEST} is not there")
    with MANIFEST.open(newline="") as file:
        for row in csv.DictReader(file):
            stem = Path(row["filename"]).stem
            assert patient_of(stem, row["kaggle_split"]) == row["patient"]


@pytest.fixture
def third_version(tmp_path):
    """Six patients a class with two images each, as in version 3 of the publication."""
    root = tmp_path / "ZhangLabData/CellData/chest_xray"
    for i in range(6):
        for k in (1, 2):
            kind = "VIRUS" if i % 2 else "BACTERIA"
            save(root / f"train/NORMAL/NORMAL-{3001 + 17 * i}-{k:04d}.jpeg", 80)
            save(root / f"train/PNEUMONIA/{kind}-{810001 + 13 * i}-{k:04d}.jpeg", 160)
    save(root / "test/NORMAL/NORMAL-99-0001.jpeg", 80)
    save(root / "test/PNEUMONIA/VIRUS-77-0003.jpeg", 160)
    return tmp_path / "ZhangLabData"


def test_third_version_of_kermany(raw, third_version, capsys):
    convert("kermany", third_version, 7)
    folder = raw / "Dataset007_KermanyCXR"
    assert len({row["patient"] for row in table(folder)}) == 12
    check_folds(folder)
    assert not capsys.readouterr().err


def test_kermany_of_other_names_needs_a_table(raw, third_version, capsys):
    root = third_version / "CellData/chest_xray"
    for klass in ("NORMAL", "PNEUMONIA"):
        for i, path in enumerate(sorted((root / "train" / klass).iterdir())):
            path.rename(path.with_name(f"{klass.lower()}{i}.jpeg"))
    convert("kermany", third_version, 7)
    assert re.search(
        r"warning: the patients of 24 of 24 training images are unknown \(first normal0.jpeg\): "
        ".* with --patients",
        capsys.readouterr().err,
    )
    rows = [
        [f"train/{klass.upper()}/{klass}{i}.jpeg", f"{klass}{i // 2}"]
        for klass in ("normal", "pneumonia")
        for i in range(12)
    ]
    write_rows(root / "patients.csv", [["file", "patient"], *rows])
    convert("kermany", third_version, 7, "--overwrite", "--patients", root / "patients.csv")
    folder = raw / "Dataset007_KermanyCXR"
    assert len({row["patient"] for row in table(folder)}) == 12
    check_folds(folder)
    assert not capsys.readouterr().err


# --- RSNA

COLUMNS = [
    *("patientId", "x", "y", "width", "height", "Target"),
    *("class", "age", "sex", "modality", "position"),
]
REST = ["any", "40", "F", "CR", "AP"]


def rsna_rows():
    sick = [[p, "2.0", "3.0", "4.0", "5.0", "1", *REST] for p in PATIENTS]
    sick.append(["p0", "7", "0", "3", "2", "1", *REST])  # a second box
    return [*sick, *([f"n{i}", "", "", "", "", "0", *REST] for i in range(6))]


@pytest.fixture
def rsna(tmp_path):
    root = tmp_path / "rsna"
    write_rows(root / "stage2_train_metadata.csv", [COLUMNS, *rsna_rows()])
    for patient in [*PATIENTS, *(f"n{i}" for i in range(6))]:
        save(root / f"Training/Images/{patient}.png")
    return root


BOXES = np.zeros(SHAPE, np.uint8)
BOXES[3:8, 2:6] = 1  # y 3, height 5; x 2, width 4
TWO_BOXES = BOXES.copy()
TWO_BOXES[0:2, 7:10] = 1


def read_png(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_rsna_draws_masks_from_boxes(raw, rsna):
    convert("rsna", rsna, 8)
    folder = raw / "Dataset008_RSNAPneumonia"
    content = load(folder / "dataset.json")
    assert content["labels"] == {"background": 0, "opacity": 1}
    assert content["classes"] == {"no opacity": 0, "pneumonia": 1}
    assert content["numTraining"] == 12
    np.testing.assert_array_equal(read_png(folder / "labelsTr/p0.png"), TWO_BOXES)
    np.testing.assert_array_equal(read_png(folder / "labelsTr/p1.png"), BOXES)
    assert not read_png(folder / "labelsTr/n0.png").any()
    assert load(folder / "labelsTr.json") == {
        **{f"n{i}": 0 for i in range(6)},
        **{f"p{i}": 1 for i in range(6)},
    }
    assert table(folder)[-1] == {"case": "p5", "class": "pneumonia", "patient": "p5"}
    check_folds(folder)


def test_rsna_prefers_mask_files(raw, rsna, capsys):
    mask = np.zeros(SHAPE, np.uint8)
    mask[5, 5] = 255
    for patient in PATIENTS:
        path = rsna / f"Training/Masks/{patient}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(mask).save(path)
    save(rsna / "Test/t0.png")
    convert("rsna", rsna, 8)
    folder = raw / "Dataset008_RSNAPneumonia"
    np.testing.assert_array_equal(read_png(folder / "labelsTr/p0.png"), mask // 255)
    assert not read_png(folder / "labelsTr/n0.png").any()
    assert names(folder / "imagesTs") == ["t0_0000.png"]
    assert not (folder / "labelsTs.json").exists()
    assert "test: 1 without class" in capsys.readouterr().out


def test_rsna_as_published(raw, tmp_path):
    root = tmp_path / "challenge"
    write_rows(root / "stage_2_train_labels.csv", [COLUMNS[:6], *(row[:6] for row in rsna_rows())])
    for patient in [*PATIENTS, *(f"n{i}" for i in range(6))]:
        save_dicom(root / f"stage_2_train_images/{patient}.dcm", pixels(77))
    save_dicom(root / "stage_2_test_images/t0.dcm", pixels(77))
    convert("rsna", root, 8)
    folder = raw / "Dataset008_RSNAPneumonia"
    np.testing.assert_array_equal(read_png(folder / "imagesTr/p0_0000.png"), pixels(77))
    np.testing.assert_array_equal(read_png(folder / "labelsTr/p0.png"), TWO_BOXES)
    assert names(folder / "imagesTs") == ["t0_0000.png"]


def test_a_box_may_not_leave_the_image():
    draw_boxes([(0, 0, 10, 12)], SHAPE, patient="p")
    with pytest.raises(ClsError, match=r"the box x 2, .* of p is not within .* 10 x 12 pixels"):
        draw_boxes([(2, 3, 9, 5)], SHAPE, patient="p")


def break_rsna(rsna, what):
    rows = rsna_rows()
    if what == "no table":
        (rsna / "stage2_train_metadata.csv").unlink()
    elif what == "column":
        write_rows(rsna / "stage2_train_metadata.csv", [[*COLUMNS[:5], "T", *COLUMNS[6:]], *rows])
    elif what == "no image":
        (rsna / "Training/Images/p3.png").unlink()
    elif what == "no row":
        save(rsna / "Training/Images/x.png")
    elif what == "no mask":
        save(rsna / "Training/Masks/p0.png")
    elif what == "twice":
        save(rsna / "Training/Images/p3.jpg")
    elif what == "leak":
        save(rsna / "Test/p3.png")
    else:
        rows[1] = {
            "target": ["p1", *rows[1][1:5], "2", *REST],
            "both": ["p0", *rows[1][1:5], "0", *REST],
            "word": ["p1", "2", "three", "4", "5", "1", *REST],
            "box": ["p1", "2", "nan", "4", "5", "1", *REST],
            "outside": ["p1", "2", "3", "400", "500", "1", *REST],
        }[what]
        write_rows(rsna / "stage2_train_metadata.csv", [COLUMNS, *rows])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no table", "rsna holds no stage2_train_metadata.csv or stage_2_train_labels.csv"),
        ("column", "lacks the column Target: it has patientId, x, y, width, height, T,"),
        ("no image", "1 patients of .* have no image in .*/Training/Images, first p3"),
        ("no row", "1 images in .*/Training/Images have no row in .*csv, first x.png"),
        ("no mask", "5 patients of Target 1 have no mask in .*/Training/Masks, first p1"),
        ("twice", "p3.jpg and .*p3.png are of the same patient"),
        ("leak", "Training/Images/p3.png and .*Test/p3.png would both be case p3"),
        ("target", "p1 has Target '2'; allowed are 0 and 1"),
        ("both", "p0 has rows of Target 0 and of Target 1"),
        ("word", "p1 has the box x '2', y 'three', width '4', height '5'; four numbers"),
        ("box", "p1 has the box x '2', y 'nan', width '4', height '5'; four numbers"),
        ("outside", "x 2, y 3, width 400, height 500 of p1 is not within its image of 10 x 12"),
    ],
)
def test_bad_rsna_is_refused(raw, rsna, capsys, what, message):
    break_rsna(rsna, what)
    assert re.search(message, refuse(capsys, "rsna", rsna, 8))
    assert not raw.exists() or not names(raw)


def test_rsna_with_sick_patients_only(raw, rsna, capsys):
    write_rows(rsna / "stage2_train_metadata.csv", [COLUMNS, *rsna_rows()[:7]])
    for i in range(6):
        (rsna / f"Training/Images/n{i}.png").unlink()
    convert("rsna", rsna, 8)
    content = load(raw / "Dataset008_RSNAPneumonia/dataset.json")
    assert content["classes"] == {"no opacity": 0, "pneumonia": 1}
    assert "no training case is of class no opacity" in capsys.readouterr().err


def write_mapping(path, images):
    """Images of NIH's patients 1, 2, ...: two of each, one sick and one not."""
    rows = [
        {"subset_img_id": image, "img_id": f"{patient:08d}_{i:03d}.png", "orig_labels": []}
        for patient, pair in enumerate(images, 1)
        for i, image in enumerate(pair)
    ]
    path.write_text(json.dumps(rows))
    return path


def test_rsna_with_patients_of_nih(raw, rsna, capsys):
    convert("rsna", rsna, 7, "--name", "Without")
    warning = capsys.readouterr().err
    assert re.search(r"patients of 12 of 12 training images are unknown \(first n0.png\)", warning)
    assert "RSNA publishes pneumonia-challenge-dataset-mappings_2018.json" in warning
    save(rsna / "Test/t0.png")
    pairs = [(f"n{i}", f"p{i}") for i in range(5)] + [("n5", "p5", "t0")]
    mapping = write_mapping(rsna / "m.json", pairs)
    convert("rsna", rsna, 8, "--patients", mapping)
    folder = raw / "Dataset008_RSNAPneumonia"
    patients = {row["case"]: row["patient"] for row in table(folder)}
    assert patients["n2"] == patients["p2"] == "nih_00000003"
    check_folds(folder)
    assert capsys.readouterr().err == (
        "warning: 1 patients have images in training and in the test set (first nih_00000006): "
        "the test set is not independent.\n"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "m.json is no list of objects with subset_img_id and img_id"),
        ('[{"subset_img_id": "p0"}]', "m.json is no list of objects .*KeyError 'img_id'"),
        ('{"p0": "00000001_000.png"}', "m.json is no list of objects"),
        ('[{"subset_img_id": "p0", "img_id": "x.png"}]', "p0 has another img_id"),
        ('[{"subset_img_id": "p0", "img_id": "00000001_000.png"}]', r"Images/n0.png \(11 of 12"),
    ],
)
def test_bad_mappings_are_refused(raw, rsna, capsys, content, message):
    (rsna / "m.json").write_text(content)
    assert re.search(message, refuse(capsys, "rsna", rsna, 8, "--patients", rsna / "m.json"))
    assert not raw.exists()


def detailed(klass="Normal"):
    """Rows of the challenge's own layout: half of the images without opacity are not normal."""
    return [
        ["patientId", "class"],
        *([f"p{i}", "Lung Opacity"] for i in range(6)),
        ["p0", "Lung Opacity"],
        *([f"n{i}", klass] for i in range(3)),
        *([f"n{i}", "No Lung Opacity / Not Normal"] for i in range(3, 6)),
    ]


def test_rsna_in_three_classes(raw, rsna):
    root = rsna.parent / "challenge"
    root.mkdir()
    shutil.copytree(rsna / "Training/Images", root / "stage_2_train_images")
    write_rows(root / "stage_2_train_labels.csv", [COLUMNS[:6], *(row[:6] for row in rsna_rows())])
    write_rows(root / "stage_2_detailed_class_info.csv", detailed())
    convert("rsna", root, 8, "--classes", 3)
    folder = raw / "Dataset008_RSNAPneumonia"
    names = {"normal": 0, "not normal": 1, "lung opacity": 2}
    assert load(folder / "dataset.json")["classes"] == names
    assert Counter(load(folder / "labelsTr.json").values()) == {0: 3, 1: 3, 2: 6}
    assert load(folder / "labelsTr.json")["n4"] == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (detailed("Pneumonia"), "n0 has the class 'Pneumonia'; one of Normal, No Lung Opacity"),
        (detailed("Lung Opacity"), "n0 has the class 'Lung Opacity', but Target 0"),
        (detailed()[:-1], "has no class for 1 images, first n5"),
        ([*detailed(), ["n0", "No Lung Opacity / Not Normal"]], "the same in all its rows"),
    ],
)
def test_bad_detailed_classes_are_refused(raw, rsna, capsys, rows, message):
    (rsna / "stage2_train_metadata.csv").rename(rsna / "stage_2_train_labels.csv")
    (rsna / "Training/Images").rename(rsna / "stage_2_train_images")
    write_rows(rsna / "stage_2_detailed_class_info.csv", rows)
    assert message in refuse(capsys, "rsna", rsna, 8, "--classes", 3)
    assert not raw.exists()


def test_grey_edges_of_masks_are_cut_at_half(raw, rsna, capsys):
    mask = np.zeros(SHAPE, np.uint8)
    mask[4:8, 3:7] = 255
    mask[3, 3:6] = (100, 127, 128)
    mask[0, 0], mask[5, 5] = 3, 251  # what JPEG leaves
    for patient in PATIENTS:
        path = rsna / f"Training/Masks/{patient}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(mask).save(path)
    convert("rsna", rsna, 8)
    written = read_png(raw / "Dataset008_RSNAPneumonia/labelsTr/p0.png")
    assert written[4:8, 3:7].all()
    assert written.sum() == 16 + 1
    assert "warning: 6 masks have grey edges (first p0.png): they were cut at half" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(("value", "shape"), [(100, (3, 3)), (None, SHAPE)])
def test_bad_masks_are_refused(raw, rsna, capsys, value, shape):
    mask = np.arange(np.prod(shape)).reshape(shape) if value is None else pixels(value, shape)
    for patient in PATIENTS:
        path = rsna / f"Training/Masks/{patient}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(mask.astype(np.uint8)).save(path)
    line = refuse(capsys, "rsna", rsna, 8)
    assert ("is of shape (3, 3)" in line) == (value is not None)
    assert ("more than 0 and one other value" in line) == (value is None)
    assert not names(raw)


# --- one folder for each class


@pytest.fixture
def classes(tmp_path):
    """Colour PNG images: five of class cat, six of class dog."""
    root = tmp_path / "my pets"
    for i in range(5):
        save_colour(root / f"cat/{i}.png")
    for i in range(6):
        save_colour(root / f"dog/{i}.png", 90)
    (root / "README.txt").write_text("not a class")
    return root


def test_class_folders_in_colour(raw, classes):
    save_colour(classes / "cat/0.png", 80, alpha=True)  # with alpha, which is left out
    convert("folder", classes, 9)
    folder = raw / "Dataset009_my_pets"
    content = load(folder / "dataset.json")
    assert content["channel_names"] == dict.fromkeys("012", "rgb_to_0_1")
    assert content["classes"] == {"cat": 0, "dog": 1}
    assert not (folder / "imagesTs").exists()
    assert not (folder / "labelsTs.json").exists()
    assert table(folder)[0] == {"case": "cat_0", "class": "cat", "patient": "cat_0"}
    check_folds(folder)
    image, _ = NaturalImage2DIO().read_images([str(folder / "imagesTr/cat_0_0000.png")])
    assert image.shape == (3, 1, *SHAPE)
    assert image[:, 0, 5, 5].tolist() == [80, 60, 70]
    np.testing.assert_array_equal(read_png(folder / "labelsTr/cat_0.png"), np.ones(SHAPE))


def test_class_folders_with_patients_and_test(raw, classes, tmp_path):
    save_colour(classes / "dog/again.png", 90)
    rows = [[f"{klass}/{i}.png", f"p{i}"] for klass in ("cat", "dog") for i in range(6)]
    write_rows(tmp_path / "patients.csv", [["patient", "file"], *([p, f] for f, p in rows)])
    with (tmp_path / "patients.csv").open("a") as file:
        file.write("p5,again.png\n")
    for klass in ("cat", "dog"):
        save_colour(tmp_path / f"holdout/{klass}/0.png")
    arguments = ("--patients", tmp_path / "patients.csv", "--test", tmp_path / "holdout")
    convert("folder", classes, 9, *arguments)
    folder = raw / "Dataset009_my_pets"
    patients = {row["case"]: row["patient"] for row in table(folder)}
    assert patients["cat_3"] == patients["dog_3"] == "p3"
    assert patients["dog_again"] == "p5"
    check_folds(folder)
    assert load(folder / "labelsTs.json") == {"test_cat_0": 0, "test_dog_0": 1}
    assert names(folder / "imagesTs") == ["test_cat_0_0000.png", "test_dog_0_0000.png"]


def test_mixed_images_need_grey(raw, classes, capsys):
    save_dicom(classes / "dog/x.dcm", np.full(SHAPE, 300, np.uint16))
    line = refuse(capsys, "folder", classes, 9)
    assert re.search(r"dog/x.dcm has 1 channel, .*cat/0.png has 3: .*--grey", line)
    assert not raw.exists()
    convert("folder", classes, 9, "--grey")
    folder = raw / "Dataset009_my_pets"
    assert load(folder / "dataset.json")["channel_names"] == {"0": "grey"}
    # 0.299 * 50 + 0.587 * 60 + 0.114 * 70
    assert (read_png(folder / "imagesTr/cat_0_0000.png") == 58).all()
    assert read_png(folder / "imagesTr/dog_x_0000.png").dtype == np.uint16


def add_text(root):
    (root / "cat/notes.txt").write_text("x")


def add_nested_folder(root):
    (root / "cat/more").mkdir()


def damage(root):
    (root / "cat/0.png").write_bytes(b"no image")


def damage_dicom(root):
    (root / "cat/0.dcm").write_bytes(b"no image")


def truncate(root):
    path = root / "dog/5.png"
    path.write_bytes(path.read_bytes()[:-30])


def add_same_name(root):
    save_colour(root / "cat/0.jpg")


def leave_one_class(root):
    shutil.rmtree(root / "cat")


def leave_no_class(root):
    shutil.rmtree(root / "cat")
    shutil.rmtree(root / "dog")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "my pets is no folder"),
        (leave_no_class, "has no sub-folders"),
        (leave_one_class, "the classes are dog: at least two"),
        (add_text, "notes.txt is no image: PNG"),
        (add_nested_folder, "cat/more is no image"),
        (add_same_name, "cat/0.jpg and .*cat/0.png would both be case cat_0"),
        (damage, "cat/0.png cannot be read as an image"),
        (damage_dicom, "cat/0.dcm cannot be read as an image"),
        (truncate, "dog/5.png cannot be read as an image"),
    ],
)
def test_bad_class_folders_are_refused(raw, classes, capsys, spoil, message):
    spoil(classes)
    assert re.search(message, refuse(capsys, "folder", classes, 9))
    assert not raw.exists() or not names(raw)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "t.csv cannot be read as a CSV table"),
        ([["file", "who"]], "t.csv lacks the column patient: it has file, who"),
        ([["file", "patient"], ["cat/0.png", "a"]], "t.csv has no row for cat/1.png"),
        ([["file", "patient"], ["0.png", "a"]], "t.csv has no row for cat/0.png"),  # or dog/0.png?
        ([["file", "patient"], ["cat/0.png", ""]], "cat/0.png has no patient, or several"),
        (
            [["file", "patient"], ["cat/0.png", "a"], ["cat/0.png", "b"]],
            "cat/0.png has no patient, or several",
        ),
    ],
)
def test_bad_patient_tables_are_refused(raw, classes, capsys, rows, message):
    path = classes.parent / "t.csv"
    if rows:
        write_rows(path, rows)
    assert message in refuse(capsys, "folder", classes, 9, "--patients", path)
    assert not raw.exists()


def test_test_folders_need_the_same_classes(raw, classes, capsys, tmp_path):
    save(tmp_path / "holdout/cat/0.png")
    line = refuse(capsys, "folder", classes, 9, "--test", tmp_path / "holdout")
    assert re.search("holdout has the classes cat; .* has cat, dog: both need the same", line)
    assert not raw.exists()


def test_a_site_of_one_class(raw, classes, capsys):
    shutil.rmtree(classes / "cat")
    for i in range(2, 6):
        (classes / f"dog/{i}.png").unlink()
    convert("folder", classes, 9, "--classes", "fox", "dog", "cat")
    folder = raw / "Dataset009_my_pets"
    assert load(folder / "dataset.json")["classes"] == {"fox": 0, "dog": 1, "cat": 2}
    assert load(folder / "labelsTr.json") == {"dog_0": 1, "dog_1": 1}
    cases = {"dog_0", "dog_1"}
    folds = load(folder / "splits_final.json")
    assert [len(fold["val"]) for fold in folds] == [1, 1, 0, 0, 0]
    assert all({*fold["train"], *fold["val"]} == cases for fold in folds)
    warnings = capsys.readouterr().err
    assert "no training case is of class fox, cat: a site" in warnings
    assert "class dog has 2 patients: not all of the 5 folds have one" in warnings


def test_a_site_of_one_image(raw, classes):
    shutil.rmtree(classes / "cat")
    for i in range(1, 6):
        (classes / f"dog/{i}.png").unlink()
    convert("folder", classes, 9, "--classes", "dog", "cat")
    folds = load(raw / "Dataset009_my_pets/splits_final.json")
    assert folds == [{"train": ["dog_0"], "val": []}] * 5


def test_a_class_folder_may_be_empty(raw, classes, capsys):
    (classes / "emu").mkdir()
    convert("folder", classes, 9)
    folder = raw / "Dataset009_my_pets"
    assert load(folder / "dataset.json")["classes"] == {"cat": 0, "dog": 1, "emu": 2}
    assert "no training case is of class emu" in capsys.readouterr().err


def test_all_class_folders_may_not_be_empty(raw, classes, capsys):
    for folder in ("cat", "dog"):
        shutil.rmtree(classes / folder)
        (classes / folder).mkdir()
    assert "my pets holds no image in any" in refuse(capsys, "folder", classes, 9)
    assert not raw.exists()


def test_sub_folders_are_among_the_classes(raw, classes, capsys):
    line = refuse(capsys, "folder", classes, 9, "--classes", "dog", "Cat")
    assert "my pets has the sub-folder cat; --classes has dog, Cat" in line
    assert not raw.exists()


def test_dicom_with_negative_values_makes_tiff(raw, tmp_path, capsys):
    """Nothing is cut: nnU-Net's reader of PNG and TIFF gets the values of every image."""
    deep = np.arange(120, dtype=np.int16).reshape(SHAPE) * 20
    for i in range(6):
        save_dicom(tmp_path / f"in/low/1.2.840.{i}", deep - 1000 - i)
        save(tmp_path / f"in/high/{i}.PNG", 200)
    convert("folder", tmp_path / "in", 9)
    folder = raw / "Dataset009_in"
    assert load(folder / "dataset.json")["file_ending"] == ".tif"
    assert {path.suffix for path in folder.glob("*/*")} == {".tif"}
    assert names(folder / "labelsTr")[-1] == "low_1_2_840_5.tif"
    reader = NaturalImage2DIO()
    image, _ = reader.read_images([str(folder / "imagesTr/low_1_2_840_5_0000.tif")])
    np.testing.assert_array_equal(image[0, 0], deep - 1005)
    image, _ = reader.read_images([str(folder / "imagesTr/high_0_0000.tif")])
    np.testing.assert_array_equal(image[0, 0], pixels(200))
    assert (reader.read_seg(str(folder / "labelsTr/high_0.tif"))[0] == 1).all()
    warnings = capsys.readouterr().err
    assert "6 images have negative values, fractions or values above 65535" in warnings
    assert "the images differ in type (6 float32, 6 uint8)" in warnings


@pytest.mark.usefixtures("raw")
def test_images_that_show_nothing_are_counted(tmp_path, capsys):
    for i in range(6):
        save(tmp_path / f"in/a/{i}.png", 40)
        save(tmp_path / f"in/b/{i}.png", 90)
    for name, value in (("a/6", 0), ("b/6", 255)):
        Image.new("L", (9, 7), value).save(tmp_path / f"in/{name}.png")
    convert("folder", tmp_path / "in", 9)
    assert "2 images have one value everywhere: they show nothing" in capsys.readouterr().err


def test_the_channel_can_be_named(raw, tmp_path, capsys):
    for i in range(5):
        save(tmp_path / f"in/a/{i}.png", 40)
        save_dicom(tmp_path / f"in/b/{i}.dcm", np.full(SHAPE, 900 + i, np.uint16))
    convert("folder", tmp_path / "in", 9, "--channel", "nonorm")
    content = load(raw / "Dataset009_in/dataset.json")
    assert content["channel_names"] == {"0": "nonorm"}
    capsys.readouterr()
    line = refuse(capsys, "folder", tmp_path / "in", 9, "--channel", "RGB_to_0_1", "--overwrite")
    assert "b/0.dcm holds the values 900 to 900: the channel rgb_to_0_1 takes 0 to 255" in line
    assert load(raw / "Dataset009_in/dataset.json") == content


@pytest.mark.usefixtures("raw")
def test_colour_reaches_the_network(classes, tmp_path):
    """A z-score of each channel would make the two images equal."""
    stain = np.linspace(0, 100, SHAPE[0] * SHAPE[1]).reshape(SHAPE)[..., None]
    for name, tint in (("a", (150, 20, 20)), ("b", (20, 20, 150))):
        Image.fromarray((stain + tint).astype(np.uint8)).save(classes / f"cat/{name}.png")
    convert("folder", classes, 9)
    folder = tmp_path / "raw/Dataset009_my_pets"
    found = []
    for name in ("a", "b"):
        image, _ = NaturalImage2DIO().read_images([str(folder / f"imagesTr/cat_{name}_0000.png")])
        for channel, title in load(folder / "dataset.json")["channel_names"].items():
            scheme = get_normalization_scheme(title)(False, {})
            image[int(channel)] = scheme.run(image[int(channel)])
        found.append(image)
    np.testing.assert_allclose(found[0][:, 0, 0, 0], [150 / 255, 20 / 255, 20 / 255], rtol=1e-6)
    assert (found[0][0] - found[1][0]).min() > 0.5


# --- MedMNIST


def archive(path, shape=(28, 28), **changes):
    arrays = {}
    for split, count in (("train", 4), ("val", 3), ("test", 2)):
        arrays[f"{split}_images"] = np.stack([pixels(10 * i + 10, shape) for i in range(count)])
        arrays[f"{split}_labels"] = (np.arange(count, dtype=np.uint8) % 2)[:, None]
    arrays.update(changes)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_npz(raw, tmp_path):
    convert("npz", archive(tmp_path / "mini.npz"), 10, "--classes", "normal", "pneumonia")
    folder = raw / "Dataset010_mini"
    assert load(folder / "dataset.json")["classes"] == {"normal": 0, "pneumonia": 1}
    assert load(folder / "splits_final.json") == [
        {
            "train": [f"train_00000{i}" for i in range(4)],
            "val": [f"val_00000{i}" for i in range(3)],
        }
    ]
    check_folds(folder, count=1)
    assert load(folder / "labelsTs.json") == {"test_000000": 0, "test_000001": 1}
    np.testing.assert_array_equal(
        read_png(folder / "imagesTr/train_000003_0000.png"), pixels(40, (28, 28))
    )
    assert table(folder)[3] == {
        "case": "train_000003",
        "class": "pneumonia",
        "patient": "train_000003",
    }


def test_npz_with_patients_on_both_sides(raw, tmp_path, capsys):
    cases = [*(f"train_00000{i}" for i in range(4)), *(f"val_00000{i}" for i in range(3))]
    rows = [["case", "patient"], *([case, f"p{i % 5}"] for i, case in enumerate(cases))]
    write_rows(tmp_path / "t.csv", rows)
    path = archive(tmp_path / "mini.npz")
    convert("npz", path, 10, "--patients", tmp_path / "t.csv", "--classes", "a", "b", "c")
    folder = raw / "Dataset010_mini"
    assert load(folder / "dataset.json")["classes"] == {"a": 0, "b": 1, "c": 2}
    assert table(folder)[5]["patient"] == "p0"
    warnings = capsys.readouterr().err
    assert "own split has 2 patients in training and in validation (first p0)" in warnings
    assert "no training case is of class c" in warnings


def test_npz_in_colour_without_test(raw, tmp_path):
    path = archive(tmp_path / "rgb.npz", (28, 28, 3), test_images=None, test_labels=None)
    convert("npz", path, 10, "--name", "Colour")
    folder = raw / "Dataset010_Colour"
    content = load(folder / "dataset.json")
    assert content["channel_names"] == dict.fromkeys("012", "rgb_to_0_1")
    assert content["classes"] == {"class_0": 0, "class_1": 1}
    assert not (folder / "imagesTs").exists()
    image, _ = NaturalImage2DIO().read_images([str(folder / "imagesTr/val_000001_0000.png")])
    assert image.shape == (3, 1, 28, 28)
    assert image[0, 0, 5, 5] == 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_labels": None}, "lacks the array val_labels"),
        ({"test_images": None}, "lacks the array test_images"),
        (
            {"train_images": np.zeros((4, 28, 28, 28), np.uint8)},
            r"shape \(4, 28, 28, 28\); allowed",
        ),
        ({"train_images": np.zeros((4, 28, 28))}, "train_images is float64"),
        ({"train_images": np.zeros((4, 28, 28, 3), np.uint8)}, "mixes greyscale and colour"),
        (
            {"train_labels": np.zeros((4, 14), np.uint8)},
            "has 14 numbers for each image: several labels",
        ),
        ({"train_labels": np.zeros((4, 1))}, "train_labels is float64"),
        ({"train_labels": -np.ones((4, 1), int)}, "negative numbers"),
        ({"train_labels": np.full((4, 1), 2)}, "gives 2 names .* are 0 to 2: give 3"),
        ({"train_images": np.array([None])}, "cannot be read as an .npz archive"),
    ],
)
def test_bad_npz_is_refused(raw, tmp_path, capsys, changes, message):
    path = archive(tmp_path / "bad.npz", **changes)
    assert re.search(message, refuse(capsys, "npz", path, 10, "--classes", "well", "sick"))
    assert not raw.exists()


def test_other_files_are_no_npz(raw, tmp_path, capsys):
    np.save(tmp_path / "single.npy", np.zeros(3))
    for path in (tmp_path / "single.npy", tmp_path / "absent.npz"):
        assert f"{path} is no .npz archive" in refuse(capsys, "npz", path, 10)
    assert not raw.exists()


# --- where it is written


def test_an_existing_dataset_is_replaced_only_on_request(raw, tmp_path, capsys):
    path = archive(tmp_path / "mini.npz")
    convert("npz", path, 10)
    (raw / "Dataset010_mini/old.txt").write_text("x")
    capsys.readouterr()
    assert "is there already" in refuse(capsys, "npz", path, 10)
    assert "mini has the id 10 already" in refuse(
        capsys, "npz", path, 10, "--name", "Other", "--overwrite"
    )
    assert (raw / "Dataset010_mini/old.txt").exists()
    stale = tmp_path / "preprocessed" / "Dataset010_mini"
    stale.mkdir(parents=True)
    convert("npz", path, 10, "--overwrite")
    assert f"remove {stale} first" in capsys.readouterr().out
    assert names(raw) == ["Dataset010_mini"]
    assert not (raw / "Dataset010_mini/old.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("0",), "dataset id 0 is not allowed: choose 1 to 999"),
        (("1000",), "dataset id 1000 is not allowed"),
        (("10", "--name", "a/b"), "dataset name 'a/b' is not allowed"),
    ],
)
def test_bad_dataset_names_are_refused(raw, tmp_path, capsys, arguments, message):
    assert message in refuse(capsys, "npz", archive(tmp_path / "mini.npz"), *arguments)
    assert not raw.exists()


def test_nnunet_raw_must_be_set_and_writable(tmp_path, monkeypatch, capsys):
    path = archive(tmp_path / "mini.npz")
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert "nnUNet_raw is not set" in refuse(capsys, "npz", path, 10)
    (tmp_path / "file").touch()
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "file"))
    assert "Dataset010_mini cannot be written" in refuse(capsys, "npz", path, 10)


@pytest.mark.parametrize("what", ["train", "train/PNEUMONIA", "test/NORMAL"])
def test_kermany_needs_its_folders(raw, kermany, capsys, what):
    shutil.rmtree(kermany / what)
    assert re.search(
        f"(no folder {what}|{what} is no folder)", refuse(capsys, "kermany", kermany, 7)
    )
    assert "--size 0" in refuse(capsys, "kermany", kermany, 7, "--size", 0)
    assert not raw.exists()


@pytest.mark.usefixtures("raw")
def test_a_progress_bar_sees_every_case(kermany):
    seen = []
    source = read_kermany(kermany)
    write_dataset(source, 7, progress=lambda cases: (seen.append(c.name) or c for c in cases))
    assert len(seen) == 22


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("cat", "a b.c"), "cat_a_b_c"),
        (("IM-0115-0001",), "IM-0115-0001"),
        (("x_0001",), "x-0001"),
        (("x", "0000"), "x-0000"),
        (("x_00001",), "x_00001"),
        (("../x",), "x"),
        (("Lunge ä",), "Lunge_ä"),
    ],
)
def test_case_names(parts, name):
    assert case_name(*parts) == name


def test_a_case_needs_a_name(raw, rsna, capsys):
    rows = [["+", *row[1:]] if row[0] == "p5" else row for row in rsna_rows()]
    write_rows(rsna / "stage2_train_metadata.csv", [COLUMNS, *rows])
    (rsna / "Training/Images/p5.png").rename(rsna / "Training/Images/+.png")
    assert "would be case ''" in refuse(capsys, "rsna", rsna, 8)
    assert not raw.exists()
