"""Classifiers train, federate and predict through nnU-Net's data, with no special case."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from batchgenerators.utilities.file_and_folder_operations import load_json
from small_datasets import plan_and_preprocess, write_dataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nnunetv2_cls.cli.plan import main as plan_main
from nnunetv2_cls.cli.predict import main as predict_main
from nnunetv2_cls.cli.pretrained import main as pretrained_main
from nnunetv2_cls.labels import labels_to_plan, write_labels
from nnunetv2_cls.trainer import nnUNetTrainerCls, nnUNetTrainerClsNoMirroring
from nnunetv2_federated.cli.check import main as check_main
from nnunetv2_federated.cli.train import main as train_main
from nnunetv2_federated.nnunet.training.randomness import seed_everything
from nnunetv2_federated.nnunet.training.trainer import _no_benchmark

ADDED = "Dataset905_Stripes"


@pytest.fixture
def train_cls(results: Path, dataset_cls: str) -> Callable[..., Path]:
    """Run the federated command with a classifier; epochs are passes over a site's cases."""

    def run(*argv: object, trainer: str = "nnUNetTrainerCls") -> Path:
        train_main(
            [
                dataset_cls,
                "2d_cls",
                "0",
                "-tr",
                trainer,
                *map(str, argv),
                "-device",
                "cpu",
                "--quiet",
            ]
        )
        return next(results.glob(f"*/{trainer}*/fold_0"))

    return run


def weights(fold: Path) -> dict[str, torch.Tensor]:
    content = torch.load(fold / "checkpoint_final.pth", weights_only=False)["network_weights"]
    return {name: tensor for name, tensor in content.items() if tensor.is_floating_point()}


def different(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> list[str]:
    assert ours.keys() == theirs.keys()
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


def test_one_site_equals_the_central_trainer(
    train_cls: Callable[..., Path], nnunet_folders: Path
) -> None:
    fold = train_cls("--sites", 1, "--partition", "iid", "--rounds", 2)

    folder = nnunet_folders / "preprocessed" / ADDED
    plans = {**load_json(str(folder / "nnUNetPlans.json")), "continue_training": False}
    seed_everything(12345)
    central = nnUNetTrainerCls(
        plans, "2d_cls", 0, load_json(str(folder / "dataset.json")), torch.device("cpu")
    )
    central.num_epochs = 2
    central.on_train_start()
    _no_benchmark(central.dataloader_train)
    central.on_train_start = lambda: None
    central.run_training()
    assert central.num_iterations_per_epoch == 4  # 32 cases in batches of 8
    floats = {n: t for n, t in central.network.state_dict().items() if t.is_floating_point()}
    assert different(weights(fold), floats) == []


def test_a_federation_of_classifiers_ends_in_predictions(
    train_cls: Callable[..., Path],
    nnunet_folders: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("nnUNet_tensorboard_enabled", "1")
    fold = train_cls("--sites", 3, "--rounds", 6, "--local-epochs", 2)

    events = EventAccumulator(str(fold / "tensorboard"))
    events.Reload()
    assert events.Scalars("final_val/AUROC")[0].value == 1
    assert len(events.Scalars("sites/site_01/dice")) == 6

    for part, cases in (("validation", 8), ("test", 10)):
        summary = json.loads((fold / part / "summary.json").read_text())
        assert summary["cases"] == cases
        assert summary["metrics"]["AUROC"] == 1  # bright rows or bright columns
        for picture in ("roc", "precision_recall", "calibration", "confusion"):
            assert (fold / part / f"{picture}.png").stat().st_size > 5000
    history = json.loads((fold / "federation.json").read_text())["rounds"]
    assert [len(record["participants"]) for record in history] == [3] * 6
    assert len(history[-1]["global_model"]["dice_per_class"]) == 2  # F1 of each class
    images = tmp_path / "in"
    shutil.copytree(nnunet_folders / "raw" / ADDED / "imagesTs", images)
    (images / "broken_0000.png").write_text("no image")
    (images / "test_03_0000.png").rename(images / "test_03.PNG")  # as people name them

    with pytest.raises(SystemExit) as exit_:
        predict_main(
            [
                "-i",
                str(images),
                "-o",
                str(tmp_path / "out"),
                "-d",
                "905",
                "-c",
                "2d_cls",
                "-tr",
                "nnUNetTrainerClsFederated",
                "-f",
                "0",
                "-device",
                "cpu",
                "--cam",
            ]
        )

    assert exit_.value.code == 1
    assert "not readable: broken" in capsys.readouterr().err
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = {f"test_{i:02d}": ("rows", "columns")[i % 2] for i in range(10)}
    assert {row["case"]: row["class"] for row in rows} == expected
    assert len(list((tmp_path / "out" / "cam").glob("test_*.png"))) == 10
    as_json = json.loads((tmp_path / "out" / "predictions.json").read_text())["cases"]
    assert sum(as_json["test_00"]["probabilities"]) == pytest.approx(1)
    # the same numbers as the training's own judgement of the test set
    test = json.loads((fold / "test" / "summary.json").read_text())["metric_per_case"]
    for case in ("test_00", "test_03"):
        assert as_json[case]["probabilities"] == pytest.approx(
            next(row for row in test if row["case"] == case)["probabilities"], abs=1e-5
        )


def test_batchnorm_is_averaged_kept_local_or_replaced(train_cls: Callable[..., Path]) -> None:
    averaged = weights(train_cls("--sites", 2, "--rounds", 2))
    local_fold = train_cls("--sites", 2, "--rounds", 2, "--batchnorm", "local")
    local = weights(local_fold)
    states = sorted(local_fold.glob("federation/sites/*/*.pt"))
    kept = [torch.load(p, weights_only=True)["buffers"]["bn1.running_mean"] for p in states]
    assert not torch.equal(kept[0], kept[-1])
    group = weights(train_cls("--sites", 2, "--rounds", 1, "--batchnorm", "group"))

    assert different(averaged, local)  # local statistics change what the sites train
    assert not torch.equal(averaged["bn1.running_mean"], torch.zeros(64))
    assert "bn1.running_mean" not in group


def test_the_presentations_federation_is_a_default(
    train_cls: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnunetv2_cls.trainer.nnUNetTrainerClsResNet50.model_name", "resnet18")
    fold = train_cls(
        "--rounds", 1, "--sites", 8, "--sites-per-round", 3,
        trainer="nnUNetTrainerClsResNet50Federated",
    )  # fmt: skip

    record = json.loads((fold / "federation.json").read_text())
    assert record["settings"]["momentum"] == 0.7
    assert record["initial_lr"] == 0.003
    assert len(record["sites"]) == 8
    assert len(record["rounds"][0]["participants"]) == 3


def test_a_training_starts_from_weights_of_torchvision(
    train_cls: Callable[..., Path], dataset_cls: str, tmp_path: Path
) -> None:
    elsewhere = torchvision.models.resnet18()
    torch.save(elsewhere.state_dict(), tmp_path / "elsewhere.pth")
    start = tmp_path / "start.pth"
    pretrained_main([dataset_cls, "-i", str(tmp_path / "elsewhere.pth"), "-o", str(start)])

    fold = train_cls("-pretrained_weights", start, "--rounds", 1, "--initial-lr", 1e-9)

    moved = weights(fold)["layer3.0.conv1.weight"] - elsewhere.layer3[0].conv1.weight
    assert moved.abs().max() < 1e-5


def test_volumes_are_classified_through_the_3d_configuration(
    results: Path,
    nnunet_folders: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = nnunet_folders / "raw" / "Dataset906_Volumes"
    write_dataset(nnunet_folders / "raw", folder.name, (20, 20, 20), cases=10)
    content = {**load_json(str(folder / "dataset.json")), "classes": {"a": 0, "b": 1, "c": 2}}
    (folder / "dataset.json").write_text(json.dumps(content))
    labels = {f"case_{i:02d}": i % 3 for i in range(10)}
    (folder / "labelsTr.json").write_text(json.dumps(labels))
    plan_and_preprocess(906, ["3d_fullres"])
    with pytest.raises(SystemExit):
        plan_main(["906"])
    assert "use nnUNetv2_cls_plan Dataset906_Volumes -c 3d_fullres" in capsys.readouterr().err
    assert not (nnunet_folders / "preprocessed" / folder.name / "labelsTr.json").exists()
    plan_main(["906", "-c", "3d_fullres", "--batch-size", "4", "--size", "16"])

    target = ["906", "3d_fullres_cls", "0", "-tr", "nnUNetTrainerCls"]
    train_main([*target, "--sites", "2", "--rounds", "1", "-device", "cpu", "--quiet"])

    fold = next(results.glob("Dataset906_Volumes/*/fold_0"))
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert summary["classes"] == ["a", "b", "c"]
    assert all(len(row["probabilities"]) == 3 for row in summary["metric_per_case"])
    plans = json.loads((fold.parent / "plans.json").read_text())
    assert plans["configurations"]["3d_fullres_cls"]["patch_size"] == [16, 16, 16]


BAD = {
    "segments": (["905", "2d", "0"], "configuration 2d segments: a classifier needs one such as"),
    "no labels": (["901", "2d_cls", "0"], "configuration 2d_cls is unknown"),
}


@pytest.mark.usefixtures("dataset_cls", "dataset_2d", "results")
@pytest.mark.parametrize(("argv", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        train_main([*argv, "-tr", "nnUNetTrainerCls", "-device", "cpu", "--rounds", "1"])

    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert exit_.value.code == 2
    assert error.startswith("error: ")
    assert message in error


def test_an_image_without_label_is_named_before_training(
    train_cls: Callable[..., Path],
    results: Path,
    nnunet_folders: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = nnunet_folders / "raw" / ADDED / "labelsTr.json"
    complete = path.read_text()
    labels = json.loads(complete)
    del labels["case_07"]
    path.write_text(json.dumps(labels))
    write_labels(ADDED, labels_to_plan(ADDED))
    try:
        with pytest.raises(SystemExit) as exit_:
            train_cls("--partition", "column", "--by", "site", "--case-table", one_site(results))
    finally:
        path.write_text(complete)
        write_labels(ADDED, labels_to_plan(ADDED))

    assert exit_.value.code == 2
    assert "1 images without label (case_07" in capsys.readouterr().err
    assert not list(results.glob("*/*"))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("labelsTr.json", {"case_08": 1}, "1 labels of Dataset905_Stripes are others in"),
        (
            "labelsTs.json",
            {"test_77": 1},
            "labelsTs.json of Dataset905_Stripes has 1 cases",
        ),
    ],
)
def test_changed_labels_are_refused_and_an_earlier_run_is_untouched(  # noqa: PLR0917  # pytest's
    file: str,
    change: dict[str, int],
    message: str,
    train_cls: Callable[..., Path],
    results: Path,
    nnunet_folders: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    earlier = results / ADDED / "nnUNetTrainerClsFederated__nnUNetPlans__2d_cls" / "fold_0"
    earlier.mkdir(parents=True)
    (earlier / "checkpoint_final.pth").write_text("weights of an earlier run")
    path = nnunet_folders / "raw" / ADDED / file
    complete = path.read_text()
    path.write_text(json.dumps({**json.loads(complete), **change}))
    try:
        with pytest.raises(SystemExit) as exit_:
            train_cls("--sites", 2)
    finally:
        path.write_text(complete)

    assert exit_.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error
    assert [p.name for p in results.rglob("*") if p.is_file()] == ["checkpoint_final.pth"]


def test_a_site_of_one_class_takes_part(
    results: Path, dataset_cls: str, nnunet_folders: Path
) -> None:
    other = "Dataset917_RowsOnly"
    for part in ("raw", "preprocessed"):
        source, target = (nnunet_folders / part / name for name in (ADDED, other))
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("*Ts*", "splits_final.json"))
        for path in target.rglob("case_*"):
            if int(path.name[5:7]) % 2:
                path.unlink()  # columns
    labels = {f"case_{i:02d}": 0 for i in range(0, 40, 2)}
    (nnunet_folders / "raw" / other / "labelsTr.json").write_text(json.dumps(labels))
    plans_file = nnunet_folders / "preprocessed" / other / "nnUNetPlans.json"
    plans_file.write_text(plans_file.read_text().replace(ADDED, other))
    try:
        plan_main(["917", "--batch-size", "8"])
        train_main(
            ["--site-datasets", dataset_cls, "917", "2d_cls", "0", "-tr", "nnUNetTrainerCls",
             "--rounds", "1", "-device", "cpu", "--quiet"]
        )  # fmt: skip
    finally:
        for part in ("raw", "preprocessed"):
            shutil.rmtree(nnunet_folders / part / other)

    validation = next(results.glob("*/*/fold_0/validation"))
    own = json.loads((validation / other / "summary.json").read_text())
    assert own["foreground_mean"]["AUROC"] is None
    assert own["classes"] == ["rows", "columns"]
    joined = json.loads((validation / "summary.json").read_text())
    assert joined["cases"] == 8 + 4
    assert joined["foreground_mean"]["AUROC"] is not None


def test_a_trainer_may_not_mirror(results: Path, dataset_cls: str, nnunet_folders: Path) -> None:
    del results, dataset_cls
    folder = nnunet_folders / "preprocessed" / ADDED

    def transforms(trainer_class: type) -> list[str]:
        plans = {**load_json(str(folder / "nnUNetPlans.json")), "continue_training": False}
        dataset_json = load_json(str(folder / "dataset.json"))
        trainer = trainer_class(plans, "2d_cls", "all", dataset_json, torch.device("cpu"))
        trainer.batch_size = 2
        loader, _ = trainer.get_dataloaders()
        expected = (1,) if trainer.mirrors else ()
        assert trainer.inference_allowed_mirroring_axes == expected
        return [type(t).__name__ for t in loader.data_loader.transforms.transforms]

    mirroring, plain = map(transforms, (nnUNetTrainerCls, nnUNetTrainerClsNoMirroring))
    assert "MirrorTransform" in mirroring
    assert [name for name in mirroring if name != "MirrorTransform"] == plain


def test_a_preprocessed_file_that_is_missing_is_named_before_training(
    train_cls: Callable[..., Path],
    results: Path,
    nnunet_folders: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = nnunet_folders / "preprocessed" / ADDED / "nnUNetPlans_2d" / "case_11_seg.b2nd"
    content = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(SystemExit) as exit_:
            train_cls("--sites", 2)
    finally:
        path.write_bytes(content)

    assert exit_.value.code == 2
    assert "lacks case_11_seg.b2nd: preprocessing was interrupted" in capsys.readouterr().err
    assert not list(results.glob("*/*"))


@pytest.mark.usefixtures("results")
def test_the_check_takes_the_trainer_that_a_configuration_is_for(
    dataset_cls: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    check_main([dataset_cls])
    of_2d, of_2d_cls = capsys.readouterr().out.split(f"{ADDED} 2d_cls")
    assert "nnUNetTrainerFederated can be built" in of_2d
    assert "nnUNetTrainerClsFederated can be built" in of_2d_cls
    assert "references" not in of_2d_cls  # it has none to validate with


def one_site(folder: Path) -> Path:
    """Write a table that puts all cases at one site."""
    table = folder.parent / "cases.csv"
    table.write_text("case,site\n" + "".join(f"case_{i:02d},one\n" for i in range(40)))
    return table


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["999"], "dataset 999 is unknown"),
        (["901"], "classes in dataset.json is None"),
        (["905", "-p", "nnUNetPlansX"], "has no plans nnUNetPlansX"),
    ],
)
@pytest.mark.usefixtures("dataset_cls", "dataset_2d")
def test_bad_plans_are_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        plan_main(argv)

    assert message in capsys.readouterr().err
