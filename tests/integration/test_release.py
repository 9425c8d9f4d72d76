"""A finished model is handed to a hospital that has nnU-Net alone, and names nobody's cases."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import save_pickle
from commands import Command
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.postprocessing.remove_connected_components import (
    remove_all_but_largest_component_from_segmentation,
)
from skimage.io import imread

from nnunetv2_federated import api
from nnunetv2_federated.cli.release import main
from nnunetv2_federated.cli.train import main as train
from nnunetv2_federated.experiment import release as releasing
from nnunetv2_federated.experiment.comparison import Arm, Comparison
from nnunetv2_federated.experiment.release_tests import read_results
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.model_card import ModelCard, read_card
from nnunetv2_federated.federation.tested_case import TestedCase, write_tested_cases
from nnunetv2_federated.nnunet.environment import environment, quiet
from nnunetv2_federated.nnunet.release import monai_bundle, onnx_writer
from nnunetv2_federated.nnunet.trainer_folders import use_trainer_folders

CASES = [f"case_{number:02d}" for number in range(12)]
FOLDER = "nnUNetTrainerFederated__nnUNetPlans__2d"


@pytest.fixture(scope="module")
def trained(
    dataset_2d: str, nnunet_folders: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Results with a federation of fold 0; fold 1 is the same, as far as a release sees it."""
    del nnunet_folders
    results = tmp_path_factory.mktemp("release") / "results"
    short = ["--sites", "2", "--rounds", "1", "--iterations-per-epoch", "1"]
    short += ["--val-iterations", "1", "-device", "cpu", "--quiet"]
    with environment(nnUNet_results=str(results), nnUNet_n_proc_DA="0"):
        train([dataset_2d, "2d", "0", *short])
        fold = next(results.glob("*/*/fold_0"))
        shutil.copytree(fold, fold.with_name("fold_1"))
        chosen = fold.with_name("crossval_results_folds_0_1")
        chosen.mkdir()  # as nnUNetv2_find_best_configuration leaves it
        summary = json.loads((fold / "validation" / "summary.json").read_text())
        (chosen / "summary.json").write_text(json.dumps(summary))
        keep = remove_all_but_largest_component_from_segmentation
        labels = [np.int64(1), np.int64(2)]
        save_pickle(([keep], [{"labels_or_regions": labels}]), str(chosen / "postprocessing.pkl"))
        yield results


@pytest.fixture
def copy(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the trained folder that a test may spoil."""
    shutil.copytree(trained, tmp_path / "results")
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    return next((tmp_path / "results").glob("*/*"))


def contents(path: Path) -> Iterator[bytes]:
    """Yield the bytes of all members, also of those that are zips themselves."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            yield archive.read(name)
            with archive.open(name) as member:
                if zipfile.is_zipfile(member):
                    member.seek(0)
                    yield from contents(member)  # type: ignore[arg-type]  # a file will do


def card_of(path: Path) -> ModelCard:
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("model_card.json"))
        return read_card(archive.read(name))


HOSPITAL = """
import sys
if __name__ == "__main__":  # the workers are nnU-Net's
    for name in (*sys.modules, "nnunetv2_federated", "nnunetv2_cls", "flwr"):
        if name.partition(".")[0] in ("nnunetv2_federated", "nnunetv2_cls", "flwr"):
            sys.modules[name] = None
    try:
        import nnunetv2_federated
    except ImportError:
        pass
    else:
        raise SystemExit("the package is there")
    release, images, out = sys.argv[1:]
    from nnunetv2.model_sharing.entry_points import install_from_zip_entry_point
    sys.argv = ["install", release]
    install_from_zip_entry_point()
    from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder
    model = "results/Dataset901_Balls/nnUNetTrainerFederated__nnUNetPlans__2d"
    sys.argv = f"p -i {images} -o {out} -m {model} -f 0 1 -device cpu -npp 1 -nps 1".split()
    predict_entry_point_modelfolder()
    from nnunetv2.postprocessing.remove_connected_components import entry_point_apply_postprocessing
    chosen = f"{model}/crossval_results_folds_0_1/postprocessing.pkl"
    sys.argv = f"a -i {out} -o {out}_pp -pp_pkl_file {chosen} -np 1".split()
    entry_point_apply_postprocessing()
    import monai.bundle
    root = "results/Dataset901_Balls/monai/2d"
    monai.bundle.run(
        config_file=f"{root}/configs/inference.json", meta_file=f"{root}/configs/metadata.json",
        bundle_root=root, input_dir=images, output_dir=f"{out}_monai",
    )
"""


@pytest.mark.slow(25)
def test_stock_nnunet_and_monai_run_a_release_that_names_no_case(
    trained: Path, nnunet_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    released = tmp_path / "model.zip"
    flags = ["901", "-c", "2d", "-f", "0", "1", "-o"]
    main([*flags, str(released), "--purpose", "find balls"])
    assert "18 files, not signed, no name of a case found" in capsys.readouterr().out

    # nothing of the machine and of its cases
    names = [*CASES, str(trained), str(nnunet_folders), str(Path.home()) + "/"]
    for content in contents(released):
        assert not [name for name in names if name.encode() in content]
    again = api.release(901, ["2d"], [0, 1], tmp_path / "2.zip", purpose="find balls", say=len)
    assert again.path.read_bytes() == released.read_bytes()

    hospital = tmp_path / "hospital"
    (hospital / "images").mkdir(parents=True)
    raw = nnunet_folders / "raw" / "Dataset901_Balls" / "imagesTr"
    shutil.copyfile(raw / "case_03_0000.png", hospital / "images" / "new_0000.png")
    (hospital / "hospital.py").write_text(HOSPITAL)
    env = {k: v for k, v in os.environ.items() if not k.startswith("nnUNet_")}
    env |= {"nnUNet_results": str(hospital / "results"), "nnUNet_def_n_proc": "1"}
    argv: list[str | Path] = [hospital / "hospital.py", released, "images", "out"]
    command = Command(argv, env, hospital, hospital / "said")
    try:
        assert command.wait(120) == 0, (hospital / "said").read_text()
    finally:
        command.kill()

    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False)
    with quiet():
        predictor.initialize_from_trained_model_folder(str(next(trained.glob("*/*"))), (0, 1))
        predictor.predict_from_files_sequential(
            [[str(hospital / "images" / "new_0000.png")]], [str(tmp_path / "here")]
        )
    ours = imread(tmp_path / "here.png")
    assert len(np.unique(ours)) > 1
    for folder in ("out", "out_monai"):
        assert np.array_equal(imread(hospital / folder / "new.png"), ours)
    kept = remove_all_but_largest_component_from_segmentation(ours, [1, 2])
    assert np.array_equal(imread(hospital / "out_pp" / "new.png"), kept)

    card = card_of(released)
    assert (card.purpose, card.licence, card.runs_with) == ("find balls", None, "nnU-Net")
    first = card.folds[0]
    assert (first.rounds, set(first.sites)) == (1, {"site_01", "site_02"})
    assert sum(site.training_cases for site in first.sites.values()) == 9
    summary = json.loads(next(trained.glob("*/*/fold_0/validation/summary.json")).read_text())
    assert first.validation is not None
    assert first.validation.cases == 3
    assert first.validation.metrics["Dice"] == summary["foreground_mean"]["Dice"]


def named_in_plans(folder: Path) -> None:
    path = folder / "plans.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["2d"]["seen"] = "imagesTr/case_03_0000.png"
    path.write_text(json.dumps(plans))


def path_in_plans(folder: Path) -> None:
    path = folder / "plans.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["2d"]["made_at"] = f"{folder}/here"
    path.write_text(json.dumps(plans))


def named_in_weights(folder: Path) -> None:
    path = folder / "fold_1" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["network_weights"]["case_03"] = torch.zeros(1)
    torch.save(checkpoint, path)


def no_checkpoint(folder: Path) -> None:
    (folder / "fold_1" / "checkpoint_final.pth").unlink()


def code_in_a_checkpoint(folder: Path) -> None:
    torch.save({"network_weights": Path("x")}, folder / "fold_1" / "checkpoint_final.pth")


def diverged(folder: Path) -> None:
    path = folder / "fold_1" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    next(iter(checkpoint["network_weights"].values()))[:] = torch.nan
    torch.save(checkpoint, path)


def other_labels(folder: Path) -> None:
    other = folder.with_name(f"{folder.name}_large")
    shutil.copytree(folder, other)
    declared = json.loads((other / "dataset.json").read_text())
    declared["labels"] = {"background": 0, "one": 2, "two": 1}
    (other / "dataset.json").write_text(json.dumps(declared))


LARGE = ["-c", "2d", "2d_large"]
USUAL = ["-c", "2d"]


@pytest.mark.parametrize(
    "case",
    [
        (named_in_plans, USUAL, "plans.json holds the name of a case or a patient: nothing was re"),
        (path_in_plans, USUAL, "plans.json holds a path of this machine"),
        (named_in_weights, USUAL, "fold_1/checkpoint_final.pth holds the name of a case"),
        (no_checkpoint, USUAL, "-c 2d -f 1: "),
        (code_in_a_checkpoint, USUAL, "fold_1/checkpoint_final.pth: names code, pathlib"),
        (diverged, USUAL, "has weights that are not finite"),
        (other_labels, LARGE, "-c 2d_large: was trained with other labels than 2d"),
        (str, [*USUAL, "--purpose", "as case_03 shows"], "--purpose: holds the name of a case"),
        (str, ["-c", "3d"], "-c 3d: "),
        (str, [*USUAL, "-tr", "nnUNetTrainerAdam"], "nnUNetTrainerAdam has trained no 2d"),
        (str, [*USUAL, "--results", "nowhere"], "--results nowhere: cannot be read (it has no"),
        (str, [*USUAL, "--sign", "nowhere"], "nowhere cannot be read: No such file"),
    ],
)
def test_what_cannot_be_released_is_one_line_and_leaves_nothing(
    copy: Path,
    tmp_path: Path,
    case: tuple[Callable[[Path], object], list[str], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil, flags, words = case
    spoil(copy)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as end:
        main(["901", *flags, "-f", "0", "1", "-o", str(tmp_path / "out.zip"), "--no-monai"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert words in said
    assert "case_03" not in said
    assert said.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_there_is_not_replaced_and_what_is_not_installed_is_said(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del copy
    (tmp_path / "mine.zip").write_text("precious")
    with pytest.raises(SettingsError, match=r"mine\.zip: exists already"):
        api.release(901, ["2d"], [0], tmp_path / "mine.zip")
    assert (tmp_path / "mine.zip").read_text() == "precious"
    monkeypatch.setattr(monai_bundle, "find_spec", {}.get)
    with pytest.raises(SettingsError, match=r"federated\[release\]', or leave it out with --no-m"):
        api.release(901, ["2d"], [0], tmp_path / "new.zip")


def test_a_folder_is_released_as_a_zip_is(copy: Path, tmp_path: Path) -> None:
    del copy
    made = api.release(901, ["2d"], ["0"], tmp_path / "given", monai=False, say=len)
    top = tmp_path / "given" / "Dataset901_Balls"
    assert sorted(path.name for path in top.iterdir()) == [
        *("MODEL_CARD.md", "SHA256SUMS", "model_card.json", FOLDER),
    ]
    assert api.verify_release(tmp_path / "given").files == made.files
    fold = torch.load(top / FOLDER / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert fold["init_args"] == {"configuration": "2d", "fold": 0}
    assert fold["trainer_name"] == "nnUNetTrainer"
    assert "metric_per_case" not in (top / FOLDER / "fold_0/validation/summary.json").read_text()


def summary(folder: Path, cases: int) -> Path:
    folder.mkdir()
    rows = [{"prediction_file": f"case_{i:02d}.png", "metrics": {}} for i in range(cases)]
    content = {"foreground_mean": {"Dice": 0.75, "n_ref": 12}, "metric_per_case": rows}
    (folder / "summary.json").write_text(json.dumps(content))
    return folder


def test_results_are_means_over_several_cases(tmp_path: Path) -> None:
    (found,) = read_results(summary(tmp_path / "rome", 3))
    assert (found.group, found.external, found.scores.cases) == ("rome", None, 3)
    assert found.scores.metrics == {"Dice": 0.75}
    with pytest.raises(SettingsError, match="has no test of at least 3 cases"):
        read_results(summary(tmp_path / "oslo", 2))

    comparison = Comparison(
        dataset="Dataset901_Balls",
        configuration="2d",
        plans_name="nnUNetPlans",
        plans_hash="0",
        trainer="nnUNetTrainer",
        folds=[0],
        seeds=[1],
        sites={1: {"bern": CASES[:3], "lyon": CASES[3:4]}},
        external={"rome": CASES[4:7]},
        arms=[Arm("centralised", {})],
        test_set=False,
        test_sites={},
    )
    (model,) = comparison.models()
    folder = tmp_path / "comparison"
    (folder / model.folder).mkdir(parents=True)
    (folder / "comparison.json").write_text(comparison.to_json())
    sites = {"bern": CASES[:3], "lyon": CASES[3:4], "rome": CASES[4:7]}
    rows: list[dict[str, Any]] = [
        {
            "case": case,
            "site": site,
            "subset": "Tr",
            "score": None,
            "shown": "",
            "metrics": {"Dice ball": 0.5 + 0.1 * int(site == "rome")},
        }
        for site, cases in sites.items()
        for case in cases
    ]
    tests = [TestedCase.of(row) for row in rows]
    write_tested_cases(folder / model.folder / "tests.json", tests)
    found_groups = {(r.group, r.external): r.scores for r in read_results(folder)}
    assert {key: scores.cases for key, scores in found_groups.items()} == {
        ("all sites", False): 4,
        ("rome", True): 3,
    }  # lyon has one case, which bern's mean would tell
    assert found_groups["rome", True].metrics["Dice"] == pytest.approx(0.6)


def test_an_evaluation_at_sites_tells_who_was_not_trained_at(tmp_path: Path) -> None:
    def answer(site: str, mean: float | None) -> dict[str, Any]:
        told = mean and {
            "cases": 4,
            "patients": 4,
            "mean": mean,
            "variance": 0.1,
            "quantiles": None,
        }
        moments = {"labels": {"1": {"Dice": told}}, "foreground": {"Dice": told}}
        counts = {"site": site, "cases": 4, "patients": 4, "unit": "case"}
        others = {"difference": None, "scores": [], "versions": {}, "device": "cpu"}
        return {**counts, "models": [moments], **others}

    sites = {
        "bern": answer("bern", 0.75),
        "rome": answer("rome", 0.5),
        "oslo": answer("oslo", None),
    }
    content = {"format": 1, "models": [{"name": "fold_0"}], "sites": sites}
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    found = {r.group: (r.external, r.scores.metrics) for r in read_results(tmp_path, {"bern"})}
    assert found == {"bern": (False, {"Dice": 0.75}), "rome": (True, {"Dice": 0.5})}
    (tmp_path / "evaluation.json").write_text(json.dumps(content | {"format": 2}))
    with pytest.raises(SettingsError, match=r"evaluation\.json has format 2, this installation"):
        read_results(tmp_path)


PLANS = {
    "plans_name": "nnUNetPlans",
    "image_reader_writer": "NaturalImage2DIO",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "configurations": {
        "2d_cls": {
            "patch_size": [32, 32],
            "batch_size": 2,
            "spacing": [1, 1],
            "architecture": {
                "network_class_name": "nnunetv2_cls.network.timm_classifier",
                "arch_kwargs": {"model_name": "resnet10t"},
                "_kw_requires_import": [],
            },
        }
    },
}


@pytest.fixture
def classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The results of a classifier, with a log as stock nnU-Net writes it."""
    from nnunetv2_cls.network import timm_classifier  # noqa: PLC0415

    model = tmp_path / "results" / "Dataset971_Skin" / "nnUNetTrainerCls__nnUNetPlans__2d_cls"
    (model / "fold_all").mkdir(parents=True)
    declared = {"channel_names": {"0": "grey"}, "classes": {"a": 0, "b": 1}, "file_ending": ".png"}
    declared["labels"] = {"background": 0, "image": 1}
    (model / "dataset.json").write_text(json.dumps(declared))
    (model / "plans.json").write_text(json.dumps(PLANS))
    torch.manual_seed(0)
    checkpoint = {
        "network_weights": timm_classifier(1, 2, "resnet10t").state_dict(),
        "logging": {"train_losses": [np.float32(1), np.float64(2)]},
        "init_args": {"configuration": "2d_cls", "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainerCls",
        "inference_allowed_mirroring_axes": (1,),
    }
    torch.save(checkpoint, model / "fold_all" / "checkpoint_final.pth")
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    use_trainer_folders()
    return tmp_path


def test_a_classifier_says_what_it_needs(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = api.release(
        "Dataset971_Skin", ["2d_cls"], ["all"], classifier / "a.zip", onnx=False, say=len
    )
    assert made.card.runs_with == "nnU-Net and nnunetv2-federated"
    assert made.card.onnx == made.card.bundles == ()
    monkeypatch.setattr(onnx_writer, "find_spec", {}.get)
    with pytest.raises(SettingsError, match="an ONNX file needs onnx: pip install"):
        api.release("Dataset971_Skin", ["2d_cls"], ["all"], classifier / "b.zip", say=len)


def test_an_onnx_file_of_a_classifier_computes_the_same(classifier: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    made = api.release("Dataset971_Skin", ["2d_cls"], ["all"], classifier / "a", say=len)
    (record,) = made.card.onnx
    assert record.input_shape == (1, 32, 32)
    assert record.difference < 1e-5
    path = classifier / "a" / "Dataset971_Skin" / record.file
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).normal(size=(3, 1, 32, 32)).astype(np.float32)
    (straight,), (mirrored,) = (
        session.run(None, {"images": x}) for x in (images, images[..., ::-1])
    )
    assert straight == pytest.approx(mirrored, abs=1e-6)  # both sides are averaged
    assert straight.sum(1) == pytest.approx(np.ones(3))


def test_a_full_disk_leaves_nothing(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del copy

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(releasing, "write_zip", full)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match="No space left"):
        api.release(901, ["2d"], [0], tmp_path / "a.zip", monai=False, say=len)
    assert sorted(tmp_path.rglob("*")) == before
