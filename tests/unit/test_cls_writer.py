"""Writing a raw dataset: where, in which format, and with which warnings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conversions import (
    SHAPE,
    archive,
    convert,
    load,
    names,
    pixels,
    refuse,
    save,
    save_dicom,
)
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import (
    get_normalization_scheme,
)
from PIL import Image

from nnunetv2_cls.conversion.kermany import read_kermany
from nnunetv2_cls.conversion.writer import write_dataset


def test_dicom_with_negative_values_makes_tiff(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
def test_images_that_show_nothing_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(6):
        save(tmp_path / f"in/a/{i}.png", 40)
        save(tmp_path / f"in/b/{i}.png", 90)
    for name, value in (("a/6", 0), ("b/6", 255)):
        Image.new("L", (9, 7), value).save(tmp_path / f"in/{name}.png")
    convert("folder", tmp_path / "in", 9)
    assert "2 images have one value everywhere: they show nothing" in capsys.readouterr().err


def test_the_channel_can_be_named(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
def test_colour_reaches_the_network(classes: Path, tmp_path: Path) -> None:
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


def test_an_existing_dataset_is_replaced_only_on_request(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
def test_bad_dataset_names_are_refused(
    raw: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert message in refuse(capsys, "npz", archive(tmp_path / "mini.npz"), *arguments)
    assert not raw.exists()


def test_nnunet_raw_must_be_set_and_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = archive(tmp_path / "mini.npz")
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert "nnUNet_raw is not set" in refuse(capsys, "npz", path, 10)
    (tmp_path / "file").touch()
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "file"))
    assert "Dataset010_mini cannot be written" in refuse(capsys, "npz", path, 10)


@pytest.mark.usefixtures("raw")
def test_a_progress_bar_sees_every_case(kermany: Path) -> None:
    seen = []
    source = read_kermany(kermany)
    write_dataset(source, 7, progress=lambda cases: (seen.append(c.name) or c for c in cases))
    assert len(seen) == 22
