"""The converters of examples/segmentation, run as a user runs them but on small fixtures."""

import csv
import importlib
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples" / "segmentation"


def read_table(path):
    with path.open(newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


def read_png(path):
    return np.asarray(Image.open(path))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def raw(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    return tmp_path / "raw"


@pytest.fixture
def converter(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("convert_cxr_lung")


COLUMNS = ["case", "site", "patient", "finding", "split"]
ROWS = [
    ("a1", "aa", "p1", "normal", "train"),
    ("a2", "aa", "p2", "COVID-19", "val"),
    ("a3", "aa", "p3", "normal", "test"),
    ("b1", "bb", "p1", "normal", "train"),
    ("b2", "bb", "p4", "normal", "val"),
    ("c1", "cc", "p5", "normal", "train"),
    ("c2", "cc", "p5", "normal", "train"),
    ("c3", "cc", "p6", "ARDS", "val"),
]


def write_source(folder, rows=ROWS):
    """A 256 x 256 image of 4 x 4 blocks whose mean is known, and a mask with all three labels."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    image = np.zeros((256, 256), np.uint8)
    image[:, 2::4] = 100
    image[:, 3::4] = 100
    mask = np.zeros((256, 256), np.uint8)
    mask[64:128] = 1
    mask[128:192] = 2
    with (folder / "manifest.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["case", "image", "mask", "country", *COLUMNS[1:]])
        for case, *rest in rows:
            Image.fromarray(image).save(folder / "images" / f"{case}.png")
            Image.fromarray(mask).save(folder / "masks" / f"{case}.png")
            writer.writerow([case, f"images/{case}.png", f"masks/{case}.png", "x", *rest])
    return folder


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "cxr")


def test_cxr_training_and_validation_become_tr_and_test_becomes_ts(converter, raw, source):
    assert converter.main([str(source), "601"]) == 0
    folder = raw / "Dataset601_CXRLung"
    training = ["a1", "a2", "b1", "b2", "c1", "c2", "c3"]
    assert names(folder / "imagesTr") == [f"{case}_0000.png" for case in training]
    assert names(folder / "labelsTr") == [f"{case}.png" for case in training]
    assert names(folder / "imagesTs") == ["a3_0000.png"]
    assert names(folder / "labelsTs") == ["a3.png"]

    dataset = json.loads((folder / "dataset.json").read_text())
    assert dataset["labels"] == {"background": 0, "lung": 1, "ignore": 2}
    assert dataset["numTraining"] == 7
    assert dataset["file_ending"] == ".png"
    assert json.loads((folder / "splits_final.json").read_text()) == [
        {"train": ["a1", "b1", "c1", "c2"], "val": ["a2", "b2", "c3"]}
    ]
    table = read_table(folder / "cases.csv")
    assert [tuple(row.values()) for row in table] == ROWS
    assert list(table[0]) == COLUMNS


@pytest.mark.parametrize("size", [256, 128, 64])
def test_cxr_images_are_averaged_and_masks_keep_their_labels(converter, raw, source, size):
    assert converter.main([str(source), "601", "--size", str(size)]) == 0
    image = read_png(raw / "Dataset601_CXRLung/imagesTr/a1_0000.png")
    mask = read_png(raw / "Dataset601_CXRLung/labelsTr/a1.png")
    assert image.shape == mask.shape == (size, size)
    assert image.dtype == mask.dtype == np.uint8
    first_row = {256: [0, 0, 100, 100], 128: [0, 100, 0, 100], 64: [50, 50, 50, 50]}[size]
    assert image[0, :4].tolist() == first_row
    quarter = size // 4
    assert (mask == np.repeat([0, 1, 2, 0], quarter)[:, None]).all()


def test_cxr_keeps_the_chosen_sites_only(converter, raw, source):
    assert converter.main([str(source), "601", "--sites", "bb", "cc"]) == 0
    table = read_table(raw / "Dataset601_CXRLung" / "cases.csv")
    assert {row["site"] for row in table} == {"bb", "cc"}


def replaced(case, **changes):
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in ROWS]
    return [
        tuple((row | changes).values()) if row["case"] == case else tuple(row.values())
        for row in rows
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row for row in ROWS if row[0] != "c3"], "site cc has no val case"),
        ([row for row in ROWS if row[0] != "b1"], "site bb has no train case"),
        (replaced("c1", patient="p6"), "patient p6 of cc is in two splits"),
        (replaced("a1", split="holdout"), "split is 'holdout', allowed are train, val, test"),
    ],
)
def test_cxr_a_bad_manifest_is_one_line_and_writes_nothing(converter, raw, capsys, rows, message):
    source = write_source(raw.parent / "bad", rows)
    assert converter.main([str(source), "601"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not raw.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["601", "--sites", "zz"], "unknown sites zz: allowed are aa, bb, cc"),
        (["0"], "dataset id 0 is not allowed: choose 1 to 999"),
    ],
)
def test_cxr_bad_arguments_are_one_line(converter, raw, capsys, arguments, message):
    source = write_source(raw.parent / "cxr")
    assert converter.main([str(source), *arguments]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not raw.exists()


def test_cxr_absent_images_are_found_before_anything_is_written(converter, raw, source, capsys):
    (source / "masks" / "b2.png").unlink()
    assert converter.main([str(source), "601"]) == 2
    assert "1 files are missing" in capsys.readouterr().err
    assert not raw.exists()


def test_an_existing_dataset_is_never_overwritten(converter, raw, source, capsys):
    taken = raw / "Dataset601_Mine"
    taken.mkdir(parents=True)
    assert converter.main([str(source), "601"]) == 2
    assert "Dataset601_Mine is there already" in capsys.readouterr().err
    assert names(raw) == ["Dataset601_Mine"]


def test_without_nnunet_raw_the_message_says_so(converter, source, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert converter.main([str(source), "601"]) == 2
    assert "nnUNet_raw is not set" in capsys.readouterr().err


@pytest.fixture
def mni152(monkeypatch):
    pytest.importorskip("nilearn", reason="the MNI152 template comes with the extra 'demo'")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("prepare_mni152")


def test_mni152_slices_have_sites_labels_and_one_shape(mni152, raw):
    assert mni152.main(["501"]) == 0
    folder = raw / "Dataset501_MNI152Slices"
    table = read_table(folder / "cases.csv")
    assert list(table[0]) == ["case", "site", "patient"]
    assert names(folder / "labelsTr") == [f"{row['case']}.png" for row in table]
    assert len(table) == json.loads((folder / "dataset.json").read_text())["numTraining"] == 57
    assert len(names(folder / "imagesTs")) == len(names(folder / "labelsTs")) == 7

    by_site = {
        site: [int(row["case"].removeprefix("mni_")) for row in table if row["site"] == site]
        for site in ("lower", "middle", "upper")
    }
    assert max(by_site["lower"]) < min(by_site["middle"])
    assert max(by_site["middle"]) < min(by_site["upper"])
    assert all(18 <= len(heights) <= 20 for heights in by_site.values())

    for row in table:
        image = read_png(folder / "imagesTr" / f"{row['case']}_0000.png")
        labels = read_png(folder / "labelsTr" / f"{row['case']}.png")
        assert image.shape == labels.shape == (64, 64)
        assert image.dtype == labels.dtype == np.uint8
        assert set(np.unique(labels)) == {0, 1, 2}


def test_mni152_is_upright_and_white_matter_is_brighter(mni152):
    volume = np.zeros((197, 233, 189), np.uint8)
    volume[:, 200:, 90] = 9  # the anterior part: the first rows of the slice
    upright = mni152.axial_slice(volume, 90)
    assert upright[0, 0] == 9
    assert upright[-1, 0] == 0

    image = mni152.axial_slice(mni152.load_template("t1"), 90)
    labels = mni152.tissue_labels(
        mni152.axial_slice(mni152.load_template("gm"), 90),
        mni152.axial_slice(mni152.load_template("wm"), 90),
    )
    assert image[labels == 2].mean() > image[labels == 1].mean() > image[labels == 0].mean()


def test_mni152_labels_are_the_most_probable_tissue(mni152):
    grey = np.array([[0.0, 200.0, 100.0, 60.0]])
    white = np.array([[0.0, 50.0, 150.0, 60.0]])
    assert mni152.tissue_labels(grey, white).tolist() == [[0, 1, 2, 0]]


def test_settings_files_are_known_to_the_federation():
    settings = pytest.importorskip("nnunetv2_federated.federation.settings")
    for name, rounds, sites in (("federated", 120, 3), ("centralised", 240, 1)):
        values = tomllib.loads((EXAMPLES / f"presentation_{name}.toml").read_text())
        known = set(settings.setting_names())
        kept = settings.FederationSettings(**{k: v for k, v in values.items() if k in known})
        assert (kept.rounds, kept.batch_size, kept.momentum) == (rounds, 12, 0.9)
        assert values["sites"] == sites
        assert set(values) - known <= {"sites", "partition", "device", "reduced"}


CLASSIFICATION = {
    "presentation_resnet50_federated": (100, 20, 6, 0.003, 0.7),
    "presentation_resnet50_centralised": (50, 1, None, 0.003, 0.9),
    "presentation_resnet34_centralised": (50, 1, None, 0.01, None),
    "pneumoniamnist_federated": (100, 20, 6, None, None),
    "pneumoniamnist_centralised": (10, 1, None, None, None),
}


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_classification_settings_are_those_of_the_presentation(name):
    from nnunetv2_federated.cli.train import command  # noqa: PLC0415
    from nnunetv2_federated.federation.settings import FederationSettings  # noqa: PLC0415

    folder = EXAMPLES.with_name("classification")
    assert {path.stem for path in folder.glob("*.toml")} == set(CLASSIFICATION)
    values = command().parse(["911", "2d_cls", "0", "--settings", str(folder / f"{name}.toml")])
    kept = values.part(FederationSettings)
    assert (
        kept.rounds,
        values.sites,
        kept.sites_per_round,
        kept.initial_lr,
        kept.momentum,
    ) == CLASSIFICATION[name]


def test_private_fine_tuning_trains_few_parameters_for_few_iterations():
    from nnunetv2_federated.cli.train import command  # noqa: PLC0415
    from nnunetv2_federated.federation.settings import FederationSettings  # noqa: PLC0415

    file = EXAMPLES.with_name("privacy") / "fine_tuning.toml"
    kept = command().parse(["601", "2d", "0", "--settings", str(file)]).part(FederationSettings)
    assert kept.private
    assert (kept.dp_epsilon, kept.dp_trainable) == (8.0, "norm,head")
    assert kept.iterations_per_epoch is not None
    assert kept.rounds * kept.iterations_per_epoch <= 200


@pytest.mark.parametrize("name", ["presentation_segmentation", "presentation_resnet50"])
def test_comparisons_are_known_to_the_command_and_can_be_reduced(name):
    from nnunetv2_federated.cli.compare import command  # noqa: PLC0415

    path = str(EXAMPLES.with_name("comparison") / f"{name}.toml")
    full, less = (
        command().parse(["901", "2d", "0", "--settings", path, *flags])
        for flags in ([], ["--reduced"])
    )
    assert less.rounds < full.rounds
    assert less.centralised.rounds < full.centralised.rounds
    assert less.sites == full.sites  # not named there
