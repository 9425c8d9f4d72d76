"""Models from anywhere: zips that lead elsewhere, pickles that name code, and what is no model."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.postprocessing.remove_connected_components import (
    apply_postprocessing,
    remove_all_but_largest_component_from_segmentation,
)
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_federated.federation.errors import CheckpointError, SettingsError, SiteError
from nnunetv2_federated.federation.evaluated_model import Postprocessing, of_dataset
from nnunetv2_federated.federation.weights_store import WeightsStore
from nnunetv2_federated.nnunet.evaluation.built_model import Machine
from nnunetv2_federated.nnunet.evaluation.model_files import ModelFiles, WhichModel, open_model
from nnunetv2_federated.nnunet.evaluation.postprocessing import postprocess, read_postprocessing
from nnunetv2_federated.nnunet.evaluation.read_model import read_model
from nnunetv2_federated.nnunet.training.safe_checkpoint import read_checkpoint

ROOT = "Dataset501_A/nnUNetTrainer__nnUNetPlans__2d"
FILES = ("plans.json", "dataset.json", "fold_0/checkpoint_final.pth")


class Command:
    """Unpickled, it runs a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def zip_with(folder: Path, names: dict[str, bytes] | list[str]) -> Path:
    path = folder / "model.zip"
    contents = names if isinstance(names, dict) else dict.fromkeys(names, b"{}")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def opened(path: Path, which: WhichModel | None = None) -> ModelFiles:
    with open_model(path, which or WhichModel()) as files:
        assert all(file.is_file() for file in files.checkpoints)
        return files


def test_a_zip_is_read_without_its_other_files(tmp_path: Path) -> None:
    names = [*FILES, "fold_1/checkpoint_final.pth", "fold_all/checkpoint_final.pth"]
    others = [
        "fold_0/checkpoint_best.pth",
        "fold_0/validation/case.png",
        "dataset_fingerprint.json",
    ]
    path = zip_with(tmp_path, [f"{ROOT}/{name}" for name in (*names, *others)])

    with open_model(path, WhichModel()) as files:
        found = sorted(str(p.relative_to(files.folder)) for p in files.folder.rglob("*.*"))
    assert found == sorted(names)
    assert files.folds == (0, 1)  # as nnU-Net predicts
    assert not files.folder.exists()
    assert opened(path, WhichModel(folds=("all",))).folds == ("all",)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["../../evil.json"], r"has the name \.\./\.\./evil.json, which leads out of it"),
        (["/etc/passwd"], r"has the name /etc/passwd, which leads"),
        ([f"{ROOT}/../x"], "which leads out of it"),
        (["a\\..\\b"], "which leads out of it"),
        (["C:/x"], "which leads out of it"),
        (["readme.txt"], r"is no exported model, plans.json is missing: give nnU-Net's result"),
        ([f"{ROOT}/plans.json"], r"is no trained model, dataset.json is missing"),
        ([f"{ROOT}/{name}" for name in FILES[:2]], r"has no fold with checkpoint_final.pth"),
        (
            ["A__P__2d/plans.json", "A__P__3d_fullres/plans.json"],
            "choose one with -c",
        ),
    ],
)
def test_a_zip_that_is_no_model_is_one_line(tmp_path: Path, names: list[str], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as refused:
        opened(zip_with(tmp_path, names))
    assert "\n" not in str(refused.value)
    assert {path.name for path in tmp_path.iterdir()} == {"model.zip"}


def test_a_file_of_a_zip_is_bounded_and_there_once(tmp_path: Path) -> None:
    large = {f"{ROOT}/{name}": b"{}" for name in FILES} | {f"{ROOT}/plans.json": bytes(2**26 + 1)}
    with pytest.raises(SettingsError, match=r"plans.json has 67108865 bytes, at most 67108864"):
        opened(zip_with(tmp_path, large))
    path = zip_with(tmp_path, [f"{ROOT}/{name}" for name in FILES])
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(f"{ROOT}/plans.json", "{}")
    with pytest.raises(SettingsError, match=r"has .*plans.json twice"):
        opened(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not whole", b"<html>"])
def test_what_is_no_zip_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.zip").write_bytes(content)
    with pytest.raises(SettingsError, match="is no zip that can be read"):
        opened(tmp_path / "model.zip")
    with pytest.raises(SettingsError, match="does not exist: give nnU-Net's result folder"):
        opened(tmp_path / "absent.zip")


def test_one_fold_is_given_by_its_folder(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert opened(tmp_path / "fold_0").folds == (0,)
    with pytest.raises(SettingsError, match="is one fold: leave -f out"):
        opened(tmp_path / "fold_0", WhichModel(folds=(1,)))
    with pytest.raises(SettingsError, match=r"has no fold_2/checkpoint_final.pth: see -f and -chk"):
        opened(tmp_path, WhichModel(folds=(0, 2)))


# Checkpoints


def checkpoint(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "network_weights": OrderedDict(weight=torch.ones(2, 3)),
        "logging": {"ema": [np.float64(0.5), np.float32(0.25)], "epochs": [np.int64(3)]},
        "_best_ema": np.float64(0.5),
        "init_args": {"configuration": "2d", "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1),
    }
    return content | changes


def saved(folder: Path, content: object) -> Path:
    torch.save(content, folder / "checkpoint_final.pth")
    return folder / "checkpoint_final.pth"


def test_a_checkpoint_of_nnunet_is_read_with_the_numbers_of_its_log(tmp_path: Path) -> None:
    found = read_checkpoint(saved(tmp_path, checkpoint()))
    assert (found.trainer, found.configuration, found.mirroring_axes) == (
        "nnUNetTrainer",
        "2d",
        (0, 1),
    )
    assert torch.equal(found.weights["weight"], torch.ones(2, 3))
    none = checkpoint(inference_allowed_mirroring_axes=None)
    assert read_checkpoint(saved(tmp_path, none)).mirroring_axes == ()


def test_no_code_of_a_checkpoint_runs(tmp_path: Path) -> None:
    hostile = checkpoint(logging=Command(tmp_path / "ran"))
    with pytest.raises(SettingsError, match=r"names code, posix\.mkdir: weights are tensors"):
        read_checkpoint(saved(tmp_path, hostile))
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Command(tmp_path / "ran")))
    with pytest.raises(SettingsError, match=r"old\.pth: cannot be read"):
        read_checkpoint(tmp_path / "old.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network_weights": {"a": 1}}, "has no 'network_weights'"),
        ({"trainer_name": "../x"}, "names no trainer and configuration"),
        ({"init_args": None}, "names no trainer and configuration"),
        ({"inference_allowed_mirroring_axes": (0, 7)}, "has no mirroring axes of nnU-Net's"),
        ({"inference_allowed_mirroring_axes": "ab"}, "has no mirroring axes of nnU-Net's"),
    ],
)
def test_another_file_of_torch_is_no_checkpoint(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        read_checkpoint(saved(tmp_path, checkpoint(**changes)))


# Postprocessing

KEEP_LARGEST = remove_all_but_largest_component_from_segmentation
STEPS = [
    ({"labels_or_regions": [1, 2]}, [1, 2], 0),
    ({"labels_or_regions": 2}, [2], 0),
    ({"labels_or_regions": (1, 2), "background_label": 0}, [[1, 2]], 0),
]


def test_postprocessing_becomes_json_and_does_the_same(tmp_path: Path) -> None:
    arguments = [given for given, _, _ in STEPS]
    content = pickle.dumps(([KEEP_LARGEST] * len(arguments), arguments))
    steps = read_postprocessing(content, "postprocessing.pkl")
    assert [(step.labels, step.background) for step in steps] == [tuple(s[1:]) for s in STEPS]

    class Reader:
        def read_seg(self, path: str) -> tuple[Any, dict[str, Any]]:
            return np.load(path)[None], {}

        def write_seg(self, seg: Any, path: str, properties: dict[str, Any]) -> None:
            del properties
            np.save(path, seg)

    segmentation = np.random.default_rng(0).integers(0, 3, (1, 12, 12)).astype(np.uint8)
    path = str(tmp_path / "a.npy")
    np.save(path, segmentation)
    postprocess(path, steps, Reader())
    expected = apply_postprocessing(segmentation, [KEEP_LARGEST] * len(arguments), arguments)
    np.testing.assert_array_equal(np.load(path), expected)
    assert (expected != segmentation).any()


def test_the_labels_of_nnunets_own_files_are_numpys() -> None:
    manager = LabelManager({"background": 0, "one": 1, "two": 2}, None)
    labels = manager.foreground_labels
    assert isinstance(labels[0], np.integer)
    for given, expected in ((labels, [1, 2]), (labels[1], [2])):
        content = pickle.dumps(([KEEP_LARGEST], [{"labels_or_regions": given}]))
        (step,) = read_postprocessing(content, "postprocessing.pkl")
        assert step.labels == expected
        assert type(step.labels[0]) is int


def test_no_code_of_a_postprocessing_runs(tmp_path: Path) -> None:
    for hostile in (
        ([Command(tmp_path / "ran")], [{"labels_or_regions": 1}]),
        ([os.system], [{"command": "true"}]),
        ([KEEP_LARGEST], [{"labels_or_regions": 1, "another": 2}]),
        ([KEEP_LARGEST], [{"labels_or_regions": "all"}]),
        ([KEEP_LARGEST], [{"labels_or_regions": np.float64(1)}]),
        ([KEEP_LARGEST], [{"labels_or_regions": np.array([1, 2])}]),
        ([KEEP_LARGEST, KEEP_LARGEST], [{"labels_or_regions": 1}]),
        "nothing",
    ):
        with pytest.raises(SettingsError, match=r"p\.pkl: not nnU-Net's postprocessing"):
            read_postprocessing(pickle.dumps(hostile), "p.pkl")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(SettingsError, match=r"1048577 bytes, a postprocessing\.pkl has fewer"):
        read_postprocessing(bytes(2**20 + 1), "p.pkl")


def test_a_step_is_one_of_nnunets() -> None:
    with pytest.raises(ValueError, match="validation error"):
        Postprocessing("os.system", [1], 0)  # type: ignore[arg-type]


# The whole model


def test_plans_that_name_code_are_refused_before_anything_is_built(tmp_path: Path) -> None:
    network = {
        "network_class_name": "os.system",
        "arch_kwargs": {},
        "_kw_requires_import": [],
    }
    plans = {
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "os.system",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"2d": {"architecture": network}},
    }
    dataset_json = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "one": 1},
        "file_ending": ".nii.gz",
        "training": [{"image": "patient_7.nii.gz"}],
    }
    weights = io.BytesIO()
    torch.save(checkpoint(), weights)
    files = {
        f"{ROOT}/plans.json": json.dumps(plans).encode(),
        f"{ROOT}/dataset.json": json.dumps(dataset_json).encode(),
        f"{ROOT}/fold_0/checkpoint_final.pth": weights.getvalue(),
    }
    path = zip_with(tmp_path, files)

    with pytest.raises(SettingsError, match=r"model\.zip: refused plans: .*os\.system") as refused:
        read_model(
            path, WhichModel(), WeightsStore(tmp_path / "w"), Machine("cpu"), postprocess=True
        )
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "w").exists()
    assert "patient_7" not in json.dumps(of_dataset(dataset_json))


def test_weights_are_what_their_hash_says(tmp_path: Path) -> None:
    store = WeightsStore(tmp_path / "w")
    vector = np.arange(5, dtype=np.float32)
    sha256 = store.put(vector)
    np.testing.assert_array_equal(store.get(sha256), vector)
    file = tmp_path / "w" / f"{sha256}.npy"
    np.save(file, vector + 1)
    with pytest.raises(CheckpointError, match="was changed"):
        store.get(sha256)
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be read"):
        store.get(sha256)
    with pytest.raises(SiteError, match="not finite"):
        store.put(np.array([np.nan], np.float32))
    store.clear()
    assert not store.has(sha256)
