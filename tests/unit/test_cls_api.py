"""What a notebook imports from ``nnunetv2_cls``, and what that costs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conversions import archive, save, table
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

import nnunetv2_cls
from nnunetv2_cls import ClsError, ConvertedDataset, convert, plan, predict
from nnunetv2_cls.inference import Classifier, Fold
from nnunetv2_cls.prediction import Predictions, write_predictions

HEAVY = ("torch", "nnunetv2", "timm", "scipy", "matplotlib", "sklearn", "numpy")


def run_python(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = f"import sys, nnunetv2_cls; print([name for name in {HEAVY} if name in sys.modules])"
    assert run_python(program) == "[]\n"


@pytest.mark.parametrize("command", ["convert", "plan", "predict", "pretrained"])
def test_the_help_of_a_command_waits_for_nothing_heavy(command: str) -> None:
    program = (
        f"import sys; from nnunetv2_cls.cli.{command} import build_parser\n"
        "build_parser().format_help()\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert run_python(program) == "[]\n"


@pytest.fixture
def not_imported() -> Iterator[None]:
    """Let the package be imported anew, and afterwards be as it was."""

    def forget() -> dict[str, ModuleType]:
        mine = [name for name in sys.modules if name.partition(".")[0] == "nnunetv2_cls"]
        return {name: sys.modules.pop(name) for name in mine}

    before = forget()
    yield
    forget()
    sys.modules.update(before)


@pytest.mark.usefixtures("not_imported")
@pytest.mark.parametrize("modules_first", [True, False])
@pytest.mark.parametrize(
    ("function", "module"),
    [
        ("convert", "conversion.convert"),
        ("plan", "planning"),
        ("predict", "prediction"),
        ("write_pretrained", "pretrained"),
    ],
)
def test_no_order_of_imports_replaces_a_function(
    function: str, module: str, *, modules_first: bool
) -> None:
    package = import_module("nnunetv2_cls")
    if not modules_first:
        assert callable(getattr(package, function))
    import_module(f"nnunetv2_cls.cli.{function.removeprefix('write_')}")
    home = import_module(f"nnunetv2_cls.{module}")
    assert getattr(package, function) is getattr(home, function)
    assert callable(getattr(package, function))


def test_every_name_is_there_and_no_submodule_has_one_of_them() -> None:
    package = Path(nnunetv2_cls.__file__).parent
    for name in nnunetv2_cls.__all__:
        assert getattr(nnunetv2_cls, name).__name__ == name
        assert name in dir(nnunetv2_cls)
        assert not (package / f"{name}.py").exists()
        assert not (package / name).exists()
    with pytest.raises(AttributeError, match=r"module 'nnunetv2_cls' has no attribute 'train'"):
        nnunetv2_cls.train  # noqa: B018


def test_a_conversion_says_what_it_wrote(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "preprocessed/Dataset010_old").mkdir(parents=True)
    seen: list[str] = []

    converted = convert(
        "npz",
        archive(tmp_path / "mini.npz"),
        10,
        classes=["well", "sick", "rare"],
        progress=lambda cases: (seen.append(case.name) or case for case in cases),
    )

    assert isinstance(converted, ConvertedDataset)
    assert converted.folder == raw / "Dataset010_mini"
    assert converted.training == {"well": 4, "sick": 3}
    assert converted.test == {"well": 1, "sick": 1}
    assert any("no training case is of class rare" in text for text in converted.warnings)
    assert converted.outdated == (tmp_path / "preprocessed/Dataset010_old",)
    assert len(seen) == 9


def test_a_conversion_takes_strings_and_its_kinds_options(raw: Path, classes: Path) -> None:
    save(classes / "cat/0.png")
    with pytest.raises(ClsError, match=r"has 1 channel, .*--grey"):
        convert("folder", str(classes), 9)
    converted = convert("folder", str(classes), 9, grey=True, name="Pets")
    assert converted.folder == raw / "Dataset009_Pets"
    assert len(table(converted.folder)) == 11


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("rsna", {"size": 8}, "size is no option of rsna, which takes detailed: leave it out"),
        ("npz", {"grey": True}, "grey is no option of npz, which takes classes"),
        ("kermany", {"classes": ["a", "b"]}, "classes is no option of kermany, which takes size"),
        ("dicom", {}, "kind 'dicom' is unknown: choose one of kermany, rsna, folder, npz"),
    ],
)
def test_an_option_of_another_kind_is_refused(
    kind: Any, options: dict[str, Any], message: str, raw: Path, tmp_path: Path
) -> None:
    with pytest.raises(ClsError, match=message):
        convert(kind, tmp_path, 9, **options)
    assert not raw.exists()


@pytest.mark.usefixtures("raw")
def test_planning_and_prediction_refuse_what_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    with pytest.raises(ClsError, match="dataset 998 is unknown"):
        plan(998)
    with pytest.raises(ClsError, match="dataset 998 is unknown"):
        predict(tmp_path, tmp_path / "out", dataset=998, configuration="2d_cls")
    with pytest.raises(ClsError, match=r"Dataset998_X.* holds no trained model"):
        predict(tmp_path, tmp_path / "out", dataset="Dataset998_X", configuration="2d_cls")
    monkeypatch.delenv("nnUNet_results")
    with pytest.raises(ClsError, match="nnUNet_results is not set"):
        predict(tmp_path, tmp_path / "out", dataset=998, configuration="2d_cls")


def test_predictions_name_the_class_of_every_case(tmp_path: Path) -> None:
    found = Predictions(("well", "sick"), 0.3, {"x": [0.6, 0.4], "y": [0.8, 0.2]}, {})
    assert found.predicted == {"x": "sick", "y": "well"}  # 0.4 is above the threshold, 0.2 is not

    write_predictions(found, tmp_path / "new")

    assert (tmp_path / "new/predictions.csv").read_text().splitlines() == [
        "case,class,probability_well,probability_sick",
        "x,sick,0.600000,0.400000",
        "y,well,0.800000,0.200000",
    ]
    assert json.loads((tmp_path / "new/predictions.json").read_text()) == {
        "classes": ["well", "sick"],
        "threshold": 0.3,
        "cases": {
            "x": {"class": "sick", "probabilities": [0.6, 0.4]},
            "y": {"class": "well", "probabilities": [0.8, 0.2]},
        },
    }
    assert Predictions(("well", "sick"), 0.3, {}, {"z": "torn"}).predicted == {}


class Constant(nn.Module):
    """A network that gives every image the same probabilities."""

    def __init__(self, probabilities: Sequence[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(images), -1)


def test_a_classifier_averages_its_folds() -> None:
    plans = PlansManager(
        {
            "dataset_name": "Dataset777_Skin",
            "plans_name": "nnUNetPlans",
            "configurations": {
                "2d_cls": {"patch_size": [4, 4], "batch_size": 2, "architecture": {}}
            },
        }
    )
    folds = (Fold(Constant([0.9, 0.1])), Fold(Constant([0.5, 0.5])))
    classifier = Classifier(plans, "2d_cls", {"classes": {"well": 0, "sick": 1}}, folds)
    images = [(name, np.zeros((1, 1, 4, 4), np.float32)) for name in ("x", "y", "z")]

    batches = list(classifier.classify_batches(iter(images)))

    assert [batch.cases for batch in batches] == [["x", "y"], ["z"]]
    assert batches[0].images.shape == (2, 1, 4, 4)
    found = classifier.classify_images(images)
    assert list(found) == ["x", "y", "z"]
    assert found["z"] == pytest.approx([0.7, 0.3])  # (0.9 + 0.5) / 2
    assert classifier.classes == ("well", "sick")
