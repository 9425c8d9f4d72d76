"""A classifier is evaluated at sites: AUROC at each, and the mean weighted by cases."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.paths import nnUNet_raw

from nnunetv2_cls.inference import load_classifier
from nnunetv2_cls.metrics import score
from nnunetv2_cls.preprocess import preprocessed_images
from nnunetv2_cls.trainer import nnUNetTrainerCls
from nnunetv2_federated import evaluate_model
from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.nnunet.evaluation.tester import images_tr

SITES = {"Dataset965_Bern": range(24), "Dataset966_Lyon": range(24, 40)}


@pytest.fixture
def classifier(dataset_cls: str, nnunet_folders: Path, results: Path) -> Iterator[Path]:
    """Result folder of a classifier with BatchNorm, and two sites with cases of its dataset."""
    del dataset_cls  # 905
    raw = nnunet_folders / "raw"
    for site, cases in SITES.items():
        shutil.copytree(raw / "Dataset905_Stripes", raw / site)
        labels = json.loads((raw / site / "labelsTr.json").read_text())
        kept = {f"case_{case:02d}" for case in cases}
        (raw / site / "labelsTr.json").write_text(json.dumps({c: labels[c] for c in kept}))
        for image in (raw / site / "imagesTr").iterdir():
            if image.name.removesuffix("_0000.png") not in kept:
                image.unlink()
    preprocessed = nnunet_folders / "preprocessed" / "Dataset905_Stripes"
    plans, dataset_json = (
        json.loads((preprocessed / name).read_text())
        for name in ("nnUNetPlans.json", "dataset.json")
    )
    plans["continue_training"] = False
    torch.manual_seed(0)
    trainer = nnUNetTrainerCls(plans, "2d_cls", 0, dataset_json, torch.device("cpu"))
    trainer.initialize()
    trainer.network.train()
    trainer.network(torch.randn(8, 1, *trainer.configuration_manager.patch_size))  # BatchNorm
    folder = Path(trainer.output_folder)
    trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
    (folder / "validation").mkdir()
    (folder / "validation" / "summary.json").write_text('{"threshold": 0.4}')
    for name, content in (("plans", plans), ("dataset", dataset_json)):
        (folder.parent / f"{name}.json").write_text(json.dumps(content))
    assert folder.is_relative_to(results)
    yield folder.parent
    for site in SITES:
        shutil.rmtree(raw / site)


def expected(model: Path, site: str) -> dict[str, float]:
    """Score a site's cases with what ``nnUNetv2_predict_cls`` uses."""
    loaded = load_classifier(model, "2d_cls", [0], "checkpoint_final.pth", torch.device("cpu"))
    raw = Path(nnUNet_raw.require()) / site
    labels = json.loads((raw / "labelsTr.json").read_text())
    probabilities = loaded.classify_images(
        preprocessed_images(images_tr(raw), loaded.plans, loaded.configuration, loaded.dataset_json)
    )
    cases = sorted(labels)
    targets = np.array([labels[case] for case in cases])
    return score(targets, np.array([probabilities[case] for case in cases]), 0.4)


def test_each_site_tells_its_metrics_and_their_mean_is_weighted_by_cases(
    classifier: Path, tmp_path: Path
) -> None:
    found = evaluate_model(
        classifier, site_datasets=list(SITES), device="cpu", output=tmp_path / "out"
    )
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())

    of_sites = {site: expected(classifier, site) for site in SITES}
    for site, scores in of_sites.items():
        assert content["sites"][site]["scores"] == [pytest.approx(scores, abs=1e-6)]
    aurocs = [of_sites[site]["AUROC"] for site in SITES]
    assert found.summary["foreground_mean"]["AUROC"] == pytest.approx(
        (24 * aurocs[0] + 16 * aurocs[1]) / 40, abs=1e-6
    )
    page = (tmp_path / "out" / "report.md").read_text()
    assert "mean over sites, weighted by cases" in page

    with pytest.raises(SettingsError, match="--metrics Dice: all metrics of a classifier are told"):
        evaluate_model(
            classifier, site_datasets=list(SITES), metrics=["Dice"], output=tmp_path / "b"
        )
    few = evaluate_model(
        classifier, site_datasets=list(SITES), device="cpu", min_cases=10, output=tmp_path / "few"
    )
    assert few.summary["foreground_mean"]["AUROC"] == pytest.approx(aurocs[0], abs=1e-6)
    assert json.loads((tmp_path / "few" / "evaluation.json").read_text())["sites"][
        "Dataset966_Lyon"
    ]["scores"] == [None]  # eight cases of each class
