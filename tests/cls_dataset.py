"""A classification dataset in nnU-Net's folders, as far as its labels go; no image in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nnunetv2_cls.labels import (
    labels_to_plan,
    preprocessed_labels,
    write_labels,
)

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
    def dataset_json(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.preprocessed / "dataset.json").read_text())
        return content

    def trained(self) -> dict[str, str]:
        """Class names as a training sees them."""
        return preprocessed_labels(NAME, self.dataset_json).names


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    for part in ("raw", "preprocessed"):
        monkeypatch.setenv(f"nnUNet_{part}", str(tmp_path / part))
    return Folders(tmp_path)


def save(path: Path, *shape: int) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.zeros(shape, np.uint8)).save(path)
