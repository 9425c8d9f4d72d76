"""Files of raw cases: as nnU-Net finds them, without its processes."""

from __future__ import annotations

import json
from pathlib import Path

from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_federated.nnunet.data.raw_files import CaseFiles, case_files, training_files


def test_cases_and_channels_are_those_of_nnunet(tmp_path: Path) -> None:
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    for case in ("b_01", "a_0000", "b"):  # each the beginning of another, or like a channel
        for channel in (1, 0):
            (tmp_path / "imagesTr" / f"{case}_{channel:04d}.nii.gz").touch()
    (tmp_path / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz"}))

    found = training_files(tmp_path)
    assert list(found) == ["a_0000", "b", "b_01"]
    assert [Path(path).name for path in found["b"].images] == ["b_0000.nii.gz", "b_0001.nii.gz"]
    plain = {case: files._asdict() for case, files in found.items()}
    assert plain == get_filenames_of_train_images_and_targets(str(tmp_path))


def test_other_files_are_no_cases(tmp_path: Path) -> None:
    for name in (".DS_Store", "Thumbs.db", "a.png", "a_1.png", "a_0000.png.part", "a_0000.png"):
        (tmp_path / name).touch()
    (tmp_path / "c_0000.png").mkdir()
    assert case_files(tmp_path, ".png") == {"a": [str(tmp_path / "a_0000.png")]}


def test_a_dataset_json_may_name_the_files_itself(tmp_path: Path) -> None:
    named = {"x": {"images": ["there/x.png"], "label": "there/x_seg.png"}}
    assert training_files(tmp_path, {"file_ending": ".png", "dataset": named}) == {
        "x": CaseFiles(
            images=[str(tmp_path / "there" / "x.png")],
            label=str(tmp_path / "there" / "x_seg.png"),
        )
    }
